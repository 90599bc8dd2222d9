"""Fused block-local learning losses for PyTorch.

Functions on tensors with a value-and-gradient twin each (`bll_kernels.functional`), served by
compiled kernels where they are built and by an eager reference everywhere. The wrappers that
make a model block-local are in the package `bll`.
"""

from bll_kernels._version import __version__
from bll_kernels.backends import available, backend_for, use_backend
from bll_kernels.families import Family, get_family
from bll_kernels.functional import (
    class_evidence_loss,
    class_evidence_loss_value_and_grad,
    class_means,
    evidence_loss,
    evidence_loss_value_and_grad,
    gram_loss,
    gram_loss_value_and_grad,
    grid_pool,
    linear_cross_entropy,
    linear_cross_entropy_value_and_grad,
    posterior_kl,
    posterior_kl_value_and_grad,
    standardize_channels,
)

__all__ = [
    "Family",
    "__version__",
    "available",
    "backend_for",
    "class_evidence_loss",
    "class_evidence_loss_value_and_grad",
    "class_means",
    "evidence_loss",
    "evidence_loss_value_and_grad",
    "get_family",
    "gram_loss",
    "gram_loss_value_and_grad",
    "grid_pool",
    "linear_cross_entropy",
    "linear_cross_entropy_value_and_grad",
    "posterior_kl",
    "posterior_kl_value_and_grad",
    "standardize_channels",
    "use_backend",
]
