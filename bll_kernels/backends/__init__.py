"""Which implementation serves an op: asked for before the call, never switched behind it."""

from bll_kernels.backends.selection import available, backend_for, use_backend

__all__ = ["available", "backend_for", "use_backend"]
