"""What every experiment trains. A row of its table is one run: one set of options and one seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tools.experiments import reversal

Options = Mapping[str, Any]

SEEDS: Final = (0, 1, 2)
#: Two linear layers of 256 units a block.
MLP: Final = {
    "dataset": "fashion-mnist", "model": "mlp", "width": 256, "epochs": 3, "batch_size": 200,
    "lr": 2e-3, "blocks": 4, "rule": "bll", "rule_options": {},
}  # fmt: skip
#: Stages of 8, 16, 32 and 64 channels on maps of 14x14 and smaller.
RESNET: Final = {
    "dataset": "fashion-mnist", "model": "resnet10", "width": 8, "epochs": 2, "batch_size": 200,
    "lr": 2e-3, "blocks": 4, "rule": "bll", "rule_options": {},
}  # fmt: skip


def _runs(
    base: Options, changes: Iterable[Options], seeds: Iterable[int] = SEEDS
) -> list[dict[str, Any]]:
    """One run for every change of the base and every seed."""
    return [{**base, **change, "seed": seed} for change in changes for seed in seeds]


def _with(rule: str, **rule_options: Any) -> dict[str, Any]:
    return {"rule": rule, "rule_options": rule_options}


def _rules() -> list[dict[str, Any]]:
    names = ("bp", "bll", "pred", "pred-sim", "bll-kl", "bll-proto", "fa", "frozen")
    return _runs(RESNET, [{"rule": name} for name in names])


def _depth() -> list[dict[str, Any]]:
    """The mlp grows with its blocks; the residual network of eight units is cut more finely."""
    rules = ("bp", "bll", "bll-kl", "fa")
    mlps = [{"rule": r, "blocks": b} for r, b in itertools.product(rules, (1, 2, 4, 8))]
    return _runs(MLP, mlps)


def _grid() -> list[dict[str, Any]]:
    pools = (("mean", 1), ("mean", 2), ("mean", 4), ("max", 1), ("max", 4))
    return _runs(RESNET | {"epochs": 1}, [_with("bll", pool=[kind, grid]) for kind, grid in pools])


def _scale() -> list[dict[str, Any]]:
    stds = [_with("bll", std=std) for std in (0.01, 0.0625, 0.25, 1.0)]
    gains = [_with("bll", gain=gain) for gain in (0.25, 4.0)]
    tilts = [_with("bll", tilt=tilt) for tilt in (0.25, 4.0)]
    bernoulli = [_with("bll", family="bernoulli", gain=gain) for gain in (1.0, 4.0, 16.0)]
    kl = [_with("bll-kl", std=std) for std in (0.25, 1.0, 4.0)]
    families = [_with("bll", family="gaussian-precision:1.0"), _with("bll")]
    return _runs(MLP | {"epochs": 2}, [*families, *stds, *gains, *tilts, *bernoulli, *kl])


def _feedback() -> list[dict[str, Any]]:
    kinds = [_with("bll", feedback=kind) for kind in ("learned", "fixed", "chained")]
    return _runs(MLP | {"epochs": 2}, kinds) + _runs(RESNET | {"epochs": 1}, kinds)


def _remedies() -> list[dict[str, Any]]:
    """What may close the gap to backpropagation on the network of `_rules`."""
    fine = _with("bll", pool=["mean", 7])
    precise = _with("bll", pool=["mean", 7], family="gaussian-precision:1.0")
    whole = _with("bll", pool=["mean", 14])
    both = _with("bll", pool=["mean", 14], family="gaussian-precision:1.0")
    chained = _with("bll", **both["rule_options"], feedback="chained")
    forms = (_with("bp"), _with("bll"), fine, precise, whole, both, chained)
    rates = [{**form, "lr": 5e-3} for form in forms]
    linear = [{**_with("pred", pool=["mean", grid]), "lr": 5e-3} for grid in (7, 14)]
    standardized = [{**form, "lr": 5e-3} for form in _STANDARDIZED + _STANDARDIZED_CLASSIFIERS]
    compared = _runs(RESNET, [fine, *rates, *linear, *standardized])
    others = [
        _with("bll", pool=["mean", 14]),
        {**_with("bll", pool=["max", 7]), "lr": 5e-3},
        {**fine, "lr": 5e-3, "blocks": 2},
        *(
            {**_with("bll", pool=pool, family=f"gaussian-precision:{tau}"), "lr": 5e-3}
            for tau, pool in (
                (1.0, ["mean", 4]),
                (1.0, ["max", 7]),
                (0.25, ["mean", 7]),
                (4.0, ["mean", 7]),
            )
        ),
        {**_with("bll", pool=["mean", 7], family="bernoulli"), "lr": 5e-3},
        {**_with("bp-deepsup", pool=["mean", 7]), "lr": 5e-3},
        *({"blocks": blocks} for blocks in (2, 3)),
        *(_with("bll", tilt=tilt) for tilt in (0.5, 2.0)),
        _with("dgl"),
        _with("dgl", aux="momentum"),
        {**_with("dgl", aux="momentum"), "lr": 5e-3},
    ]
    return compared + _runs(RESNET, others, seeds=SEEDS[:1])


#: The four forms of `_remedies` that are worth comparing elsewhere.
_FORMS: Final = (
    _with("bp"),
    _with("bll"),
    _with("bll", pool=["mean", 7]),
    _with("bll", pool=["mean", 7], family="gaussian-precision:1.0"),
)
_FINER: Final = _with("bll", pool=["mean", 14], family="gaussian-precision:1.0")
#: Local linear classifiers on the features of `_FINER`, with a prior (`bll`) and without.
_CLASSIFIERS: Final = (_with("bll", pool=["mean", 14]), _with("pred", pool=["mean", 14]))
#: `_FINER` and a linear classifier, on latents of mean 0 and variance 1.
_STANDARDIZED: Final = tuple(
    _with("bll", **_FINER["rule_options"], standardize=over) for over in ("sample", "batch")
)
_STANDARDIZED_CLASSIFIERS: Final = tuple(
    _with("pred", pool=["mean", 14], standardize=over) for over in ("sample", "batch")
)


def _wide() -> list[dict[str, Any]]:
    """Whether what helps a narrow network for two epochs helps a wider one for four."""
    base = RESNET | {"width": 16, "epochs": 4, "lr": 5e-3}
    return _runs(base, [*_FORMS, _FINER, *_STANDARDIZED])


def _resnet18() -> list[dict[str, Any]]:
    """A narrow ResNet-18 under every rule of the published table, then in ever more blocks."""
    base = RESNET | {"model": "resnet18", "width": 8, "lr": 5e-3}
    before, best = _FORMS[1], _FORMS[-1]
    rules = [_FORMS[0], best, *map(_with, ("pred", "pred-sim", "bll-proto", "bll-kl", "fa"))]
    cuts = [{**form, "blocks": blocks} for form in (best, _FINER) for blocks in (2, 8)]
    standardized = [{**form, "blocks": blocks} for form in _STANDARDIZED for blocks in (4, 8)]
    return _runs(base, [*rules, _FINER, *cuts, before, *_CLASSIFIERS, *standardized])


def _cifar() -> list[dict[str, Any]]:
    """The same network on CIFAR-10: more blocks, and the other rules in four."""
    base = RESNET | {"dataset": "cifar-10", "model": "resnet18", "lr": 5e-3, "epochs": 3}
    forms = (_FINER, *_STANDARDIZED)
    cuts = [{**form, "blocks": blocks} for form in forms for blocks in (4, 8, 2)]
    classifiers = (*_CLASSIFIERS, *_STANDARDIZED_CLASSIFIERS)
    finest = _with("bll", pool=["mean", 16], family="gaussian-precision:1.0")
    rules = [_with(name) for name in ("pred", "pred-sim", "bll-kl", "fa")]
    return _runs(base, [_FORMS[0], *cuts, finest, *classifiers, *rules])


def _reach() -> list[dict[str, Any]]:
    """The eight blocks of `_cifar`, whose losses also train the block before, or not."""
    base = RESNET | {"dataset": "cifar-10", "model": "resnet18", "lr": 5e-3, "epochs": 3}
    options = {"family": "gaussian-precision:1.0", "pool": ["mean", 14], "standardize": "channels"}
    form = {**_with("bp-deepsup", **options), "blocks": 8}
    return _runs(base, [{**form, "reach": reach} for reach in (1, 0)])


_NARROW: Final = RESNET | {"dataset": "cifar-10", "lr": 5e-3, "epochs": 3}
#: The default of `bll`, spelled out.
_DEFAULT: Final = _with(
    "bll", family="gaussian-precision:1.0", pool=["mean", 14], standardize="channels"
)


def _mixing() -> list[dict[str, Any]]:
    """Samples that enter the next block as their posterior has it, ever fewer."""
    return _runs(_NARROW | _DEFAULT, [{"mixing": share} for share in (0.0, 0.2, 0.5)])


def _families() -> list[dict[str, Any]]:
    """A family for each block: the default, and from the first block to the last."""
    density, tilt, bits = "gaussian-precision:1.0", "gaussian", "bernoulli"
    broad, sharp = "gaussian-precision:0.25", "gaussian-precision:4.0"
    mixed = [
        (density, density, density),
        (tilt, density, density), (density, density, tilt),
        (bits, density, density), (density, density, bits),
        (broad, density, sharp), (sharp, density, broad),
    ]  # fmt: skip
    return _runs(_NARROW | _DEFAULT, [{"families": families} for families in mixed])


def _precision() -> list[dict[str, Any]]:
    """The precision of the default message, on the perceptron of docs/results.md."""
    taus = [_with("bll", family=f"gaussian-precision:{tau}") for tau in (1.0, 4.0, 16.0)]
    standardized = [
        _with("bll", family="gaussian-precision:1.0", standardize=over)
        for over in ("sample", "batch")
    ]
    forms = [_FORMS[0], _with("bll", family="gaussian"), *taus, *standardized]
    return _runs(MLP | {"epochs": 5}, forms)


def _to_accuracy() -> list[dict[str, Any]]:
    """Until one accuracy is reached, at a constant rate; as many rates are tried for each rule."""
    tries = [
        {**form, "lr": lr}
        for form, lr in itertools.product((_FORMS[0], _FINER), (1e-3, 2e-3, 5e-3))
    ]
    base = {"schedule": "constant", "epochs": 15}
    return _runs(MLP | base | {"stop_at": 88.5}, tries) + _runs(
        RESNET | base | {"stop_at": 88.0}, tries
    )


def _shallow() -> list[dict[str, Any]]:
    """A first block of the stem alone, in the ways a user may cut it, and what may repair it."""
    base = RESNET | {"lr": 5e-3}
    stages = ("stage1", "stage2", "stage3")
    ends = {"apart": ("stem", *stages), "within": stages, "alone": ("stem", *stages[1:])}
    precise = _FORMS[-1]
    forms = [{**form, "blocks": end} for end in ends.values() for form in (_with("bll"), precise)]
    repairs = [
        {**form, "blocks": ends["apart"]}
        for form in (
            _FINER,
            _with("bll", feedback="chained"),
            _with("bll", **_FINER["rule_options"], feedback="chained"),
            _with("dgl"),
            _with("pred-sim"),
        )
    ]
    deeper = [{"model": "vgg8b", **precise, "blocks": blocks} for blocks in (2, 4, 8)]
    layers = _runs(base | {"width": 8}, [{"model": "vgg8b", **_with("bp"), "blocks": 1}, *deeper])
    return _runs(base, forms) + _runs(base, repairs) + layers


def _reversal() -> list[dict[str, Any]]:
    base = {**reversal.FIXED, "rule_options": {}, "depth": 20, "width": 64, "lr": 1e-3}
    local = [{"rule": "bll", "blocks": blocks} for blocks in (20, 10, 5, 4, 2, 1)]
    rates = [
        {"rule": rule, "blocks": blocks, "lr": lr}
        for (rule, blocks), lr in itertools.product((("bp", 1), ("bll", 20)), (3e-4, 3e-3))
    ]
    forms = [
        _with("bll", feedback="fixed"),
        _with("bll", family="bernoulli"),
        _with("bll-kl"),
        _with("pred"),
    ]
    every_layer = [{**form, "blocks": 20} for form in forms]
    precise = [
        {**_with("bll", family="gaussian-precision:1.0", **options), "blocks": 20}
        for options in ({}, {"standardize": "sample"}, {"standardize": "batch"})
    ]
    compared = _runs(base, [{"rule": "bp", "blocks": 1}, *local, *precise])
    return compared + _runs(base, [*rates, *every_layer], seeds=SEEDS[:1])


IMAGES: Final = {
    "rules": _rules,
    "depth": _depth,
    "grid": _grid,
    "scale": _scale,
    "feedback": _feedback,
    "remedies": _remedies,
    "wide": _wide,
    "resnet18": _resnet18,
    "cifar": _cifar,
    "reach": _reach,
    "mixing": _mixing,
    "families": _families,
    "precision": _precision,
    "shallow": _shallow,
    "to-accuracy": _to_accuracy,
}
SEQUENCES: Final = {"reversal": _reversal}
NAMES: Final = (*IMAGES, *SEQUENCES)
