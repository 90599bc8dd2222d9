"""Fixed random weights in place of a model's own in the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import grad
from torch.utils.hooks import RemovableHandle

_INPUT_GRADIENTS: tuple[tuple[type[nn.Module], Callable[..., Tensor]], ...] = (
    (nn.Conv1d, grad.conv1d_input),
    (nn.Conv2d, grad.conv2d_input),
    (nn.Conv3d, grad.conv3d_input),
)
_SERVED: tuple[type[nn.Module], ...] = (nn.Linear, *(kind for kind, _ in _INPUT_GRADIENTS))
# Weights applied inside one fused call, where no other weight can be put into the backward pass.
_REFUSED = (
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.Bilinear,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class BackwardPath(nn.Module):
    """One fixed random weight B per linear layer or convolution W, used for its input's gradient.

        forward  y = x W^T + bias        backward  dx = dy B (not dy W),  dW = dy^T x as usual

    The modules run as they are; hooks cut the graph before each of them and lead the gradient
    round it. Embeddings, normalisations and activations keep their exact backward. B is drawn as
    torch draws W: uniform in +-1 / sqrt(fan-in), from a generator of its own.

    Args:
        model: The model; its modules are looked at, not changed.
        seed: Seed of the draws.

    Raises:
        ValueError: The model has no linear layer or convolution, or one that cannot be served.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.served: tuple[str, ...] = tuple(_served_modules(model))
        for name in self.served:
            weight = cast(Tensor, model.get_submodule(name).weight)
            self.register_buffer(_key(name), torch.empty_like(weight, requires_grad=False))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every weight anew from the seed; on meta do nothing."""
        for index, name in enumerate(self.served):
            weight = self.weight(name)
            if weight.is_meta:
                continue
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
            bound = 1 / math.sqrt(weight[0].numel())
            weight.copy_((2 * torch.rand(weight.shape, generator=generator) - 1) * bound)

    def weight(self, name: str) -> Tensor:
        """Return B of the named module."""
        return cast(Tensor, getattr(self, _key(name)))

    def install(self, model: nn.Module, is_active: Callable[[], bool]) -> list[RemovableHandle]:
        """Hook the served modules; outside a step (`is_active()` is False) the hooks do nothing."""
        handles = []
        for name in self.served:
            hook = _Detour(self, name, is_active)
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(hook.before))
            handles.append(module.register_forward_hook(hook.after))
        return handles

    def extra_repr(self) -> str:
        """One line for `print(model)`."""
        return f"modules={len(self.served)}"


def _key(name: str) -> str:
    # A buffer's name holds no dot.
    return name.replace(".", "-") if name else "model"


def _served_modules(model: nn.Module) -> list[str]:
    served = []
    for name, module in model.named_modules():
        if isinstance(module, _REFUSED):
            raise ValueError(
                f"model: the backward pass of {name!r} ({type(module).__name__}) cannot take other "
                "weights; expected linear layers and convolutions"
            )
        if isinstance(module, _SERVED):
            if not isinstance(module, nn.Linear):
                _padding(name, module)
            served.append(name)
    if not served:
        raise ValueError("model: expected linear layers or convolutions, got none")
    return served


def _padding(name: str, module: nn.Module) -> tuple[int, ...]:
    """Zero padding of a convolution, the same on both sides of every dimension."""
    kernel, dilation = cast(Any, module.kernel_size), cast(Any, module.dilation)
    if module.padding_mode != "zeros":
        raise ValueError(f"model: {name!r} pads with {module.padding_mode!r}; expected 'zeros'")
    if not isinstance(module.padding, str):
        return tuple(cast(Any, module.padding))
    if module.padding == "valid":
        return (0,) * len(kernel)
    spans = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    if any(span % 2 for span in spans):
        raise ValueError(f"model: {name!r} pads its two sides unequally; expected odd kernels")
    return tuple(span // 2 for span in spans)


class _Detour:
    """The two hooks of one module."""

    def __init__(self, path: BackwardPath, name: str, is_active: Callable[[], bool]) -> None:
        self.path = path
        self.name = name
        self.is_active = is_active
        self.input: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The input belongs to one call, and cannot be copied.
        return {**self.__dict__, "input": None}

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Keep the input and give the module one without a graph."""
        self.input = None
        if not (self.is_active() and torch.is_grad_enabled()):
            return None
        if not args:
            raise TypeError(f"model: {self.name!r} is called by keyword; expected a position")
        if not args[0].requires_grad:
            return None
        self.input = args[0]
        return (args[0].detach(), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
        """Lead the output's gradient round the module to the input."""
        source, self.input = self.input, None
        if source is None:
            return None
        return _LeadRound.apply(source, output, self.path.weight(self.name), self.name, module)


class _LeadRound(torch.autograd.Function):
    """The identity on a module's output whose gradient also goes, through B, to its input."""

    @staticmethod
    def forward(
        ctx: Any, source: Tensor, output: Tensor, weight: Tensor, name: str, module: nn.Module
    ) -> Tensor:
        # Not a view, which activations that work in place would refuse.
        ctx.mark_dirty(output)
        # Not saved for the backward pass as such: checkpointing counts what is.
        ctx.weight, ctx.name, ctx.module, ctx.shape = weight, name, module, source.shape
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        module, weight = ctx.module, ctx.weight.to(gradient.dtype)
        if isinstance(module, nn.Linear):
            return gradient @ weight, gradient, None, None, None
        input_gradient = next(f for kind, f in _INPUT_GRADIENTS if isinstance(module, kind))
        padding = _padding(ctx.name, module)
        geometry = (module.stride, padding, module.dilation, module.groups)
        to_source = input_gradient(ctx.shape, weight, gradient, *geometry)
        return to_source, gradient, None, None, None
