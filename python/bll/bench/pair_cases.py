"""Cases of the losses between parameters and a message: every family, dense or by label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import bll_kernels as bk
from bll.bench import peers
from bll.bench.cases import (
    GATE,
    Case,
    Form,
    Inputs,
    Values,
    compiled,
    compiled_by_hand,
    differentiated,
)
from bll.bench.traffic import SPECIAL_FUNCTIONS, pair_bytes

Value = Callable[[Tensor, Tensor], Tensor]
CLASSES = 10


@dataclass(frozen=True)
class _Formulas:
    """What others compute for a family."""

    posterior_kl: Value
    evidence_loss: Value
    libraries: dict[str, Value] = field(default_factory=dict)
    planes: int = 1
    #: Allowed error in units of the common gate: how many rounded sums stand in a gradient.
    gate: float = 1.0


FAMILIES = {
    "bernoulli": _Formulas(
        partial(peers.formula, full=False),
        peers.bernoulli_evidence,
        {
            "torch.distributions": partial(peers.distributions, full=False),
            "BCE-with-logits": peers.bce_with_logits,
        },
    ),
    "gaussian": _Formulas(
        peers.gaussian_kl,
        peers.gaussian_evidence,
        {"torch.distributions": peers.gaussian_distributions},
    ),
    "gaussian-precision": _Formulas(peers.precision_kl, peers.precision_evidence, gate=2.0),
    "gaussian-diagonal": _Formulas(
        peers.diagonal_kl,
        peers.diagonal_evidence,
        {"torch.distributions": peers.diagonal_distributions},
        planes=2,
        gate=4.0,
    ),
    "categorical": _Formulas(
        peers.categorical_kl,
        peers.categorical_evidence,
        {"torch.distributions": peers.categorical_distributions},
        gate=4.0,
    ),
}


def _draw(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    classes: int | None,
    generator: torch.Generator,
) -> Inputs:
    def normal(size: tuple[int, ...]) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    a = (3 * normal(shape) if len(shape) == 2 else normal(shape)).to(dtype)
    if classes is None:
        return a, normal(shape).to(dtype)
    labels = torch.randint(classes, shape[:1], generator=generator, device=device)
    return a, normal((classes, *shape[1:])).to(dtype), labels


def _ours(function: str, family: str, wrt: tuple[str, ...], options: dict[str, Any]) -> Form:
    call = getattr(bk, f"{function}_value_and_grad")

    def form(inputs: Inputs) -> Values:
        a, b, *labels = inputs
        by_label = {"labels": labels[0]} if labels else {}
        value, gradients = call(a, b, family, wrt=wrt, **by_label, **options)
        return (value, *gradients)

    return form


def pair_case(
    function: str,
    family: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    *,
    message: str = "dense",
    full: bool = False,
    compile_peers: bool = True,
) -> Case:
    """One pair loss with its gradients.

    Args:
        function: "posterior_kl" or "evidence_loss".
        family: Name of the family.
        shape: Rows and latents.
        dtype: Of latents and messages.
        device: Where the inputs are drawn.
        message: "dense", or "table": one per class, looked up by label.
        full: Gradient to the message too; for the KL of Bernoulli the posterior is not held then.
        compile_peers: Whether compiled forms are among the peers.
    """
    formulas = FAMILIES[family]
    latents = shape if formulas.planes == 1 else (shape[0], 2, shape[1])
    table = message == "table"
    value: Callable[..., Tensor] = getattr(formulas, function)
    libraries: dict[str, Callable[..., Tensor]]
    libraries = dict(formulas.libraries) if function == "posterior_kl" else {}
    options: dict[str, Any] = {}
    if full and function == "posterior_kl":
        if family != "bernoulli":
            raise ValueError(f"full: expected bernoulli for posterior_kl, got {family!r}")
        value = partial(peers.formula, full=True)
        libraries = {"torch.distributions": partial(peers.distributions, full=True)}
        options["stop_posterior"] = False
    one_graph = partial(peers.one_graph, full=full)
    if table:
        value = peers.by_label(value)
        libraries = {name: peers.by_label(form) for name, form in libraries.items()}
    wanted = 2 if full else 1
    forms: dict[str, Form] = {"eager autograd": differentiated(value, wanted)}
    forms |= {name: differentiated(form, wanted) for name, form in libraries.items()}
    if family == "categorical" and function == "posterior_kl" and not table:
        forms["Liger-Kernel"] = peers.liger_kl
    if compile_peers:
        if family == "bernoulli" and function == "posterior_kl" and not table:
            forms["torch.compile, gradient by hand"] = compiled_by_hand(one_graph)
        forms["torch.compile"] = compiled(value, wanted)
        if device.startswith("cuda"):
            for mode in ("reduce-overhead", "max-autotune-no-cudagraphs"):
                forms[f"torch.compile {mode}"] = compiled(value, wanted, mode)
    elements = shape[0] * shape[1]
    kind = f"{function} {family}" + (" full" if full else "") + (" by label" if table else "")
    return Case(
        name=f"{kind} {list(shape)} {str(dtype)[6:]}",
        make=partial(_draw, latents, dtype, device, CLASSES if table else None),
        ours=_ours(function, family, ("a", "b")[:wanted], options),
        peers=forms,
        truth=value,
        wanted=wanted,
        per_row=(0, 2) if table else (0, 1),
        gate=GATE[dtype] * formulas.gate * (4 if function == "evidence_loss" else 1),
        moved_bytes=formulas.planes
        * pair_bytes(elements, dtype.itemsize, grad_b=full, table=table),
        special_functions=elements * SPECIAL_FUNCTIONS[family],
        dtype=dtype,
        config={
            "function": function,
            "family": family,
            "message": message,
            "full": full,
            "shape": list(shape),
            "dtype": str(dtype)[6:],
        },
    )
