"""Latents of mean 0 and variance 1; the rules' gradients through them: test_rules_gradient.py."""

import pytest
import torch
from torch import nn

import bll
from bll.features import standardized


def moments(x, dims):
    return x.mean(dims), x.var(dims, correction=0)


@pytest.mark.parametrize("shape", [(8, 6), (8, 3, 6)], ids=str)
@pytest.mark.parametrize(("over", "across"), [("sample", -1), ("batch", 0)])
def test_moments_of_rows(shape, over, across):
    x = 3 * torch.randn(shape, dtype=torch.float64) + torch.arange(6.0, dtype=torch.float64)
    found, pool = standardized(x, None, over)
    assert pool is None
    assert found.shape == x.shape
    mean, variance = moments(found.flatten(0, -2), across)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-9, rtol=0)
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-3, rtol=0)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pool", [("mean", 2), ("mean", 6), ("max", 6), ("max", 3), ("std", 3)])
def test_moments_of_maps(pool, memory):
    _, grid = pool
    scale = torch.arange(1.0, 5.0).view(4, 1, 1)
    x = (scale * torch.randn(8, 4, 6, 6) + scale).to(memory_format=memory)
    by_sample, _ = standardized(x, pool, "sample")
    assert by_sample.shape == (8, 4 * grid * grid)
    mean, variance = moments(by_sample, 1)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-3, rtol=0)
    by_batch, no_pool = standardized(x, pool, "batch")
    assert no_pool is None and torch.equal(by_batch, standardized(x, pool, "channels")[0])
    by_batch = by_batch.view(8, 4, grid, grid)
    mean, variance = moments(by_batch, (0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=2e-2, rtol=0)


def test_no_loss_pulls_at_scale_or_mean():
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    for over, across in (("sample", 1), ("batch", 0)):
        weights = torch.randn(5, 7, dtype=torch.float64)
        (grad,) = torch.autograd.grad((standardized(x, None, over)[0] * weights).sum(), x)
        centred = (x - x.mean(across, keepdim=True)).detach()
        assert grad.abs().sum() > 1
        torch.testing.assert_close(grad.sum(across), torch.zeros_like(grad.sum(across)))
        pull = (grad * centred).sum(across)
        assert pull.abs().max() < 1e-4 * (grad * centred).abs().sum(across).max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("over", ["sample", "channels"])
def test_half_precision_learns(dtype, over):
    rule = bll.get_rule("bll", standardize=over)
    feature = torch.randn(8, 4, 5, 5).to(dtype).requires_grad_()
    labels = torch.arange(8) % 3
    spec = rule.feature_spec(feature)
    message = rule.make_message(3, 0, None)
    message.materialize(spec)
    value = rule.loss(feature, labels, message, spec.pool)
    value.backward()
    wide = feature.detach().float().requires_grad_()
    expected = rule.loss(wide, labels, message, spec.pool)
    expected.backward()
    torch.testing.assert_close(value.float(), expected, rtol=2e-2, atol=0)
    distance = (feature.grad.float() - wide.grad).norm() / wide.grad.norm()
    assert distance < 2e-2


@pytest.mark.parametrize("over", ["none", "sample", "channels"])
def test_chained_feedback_under_autocast(over):
    """Its tables are of the half type, beside latents in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3),
    )  # fmt: skip
    rule = bll.get_rule("bll", feedback="chained", standardize=over, pool=("mean", 3))
    x, y = torch.randn(8, 1, 12, 12), torch.arange(8) % 3
    bll.wrap(model, ["1", "3"], num_classes=3, rule=rule, example=x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = model(x, y=y)
    narrow.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    wide = model(x, y=y)
    for name, loss in wide.block_losses.items():
        torch.testing.assert_close(narrow.block_losses[name].float(), loss, rtol=0.05, atol=0.05)


def test_one_value_of_a_latent_or_channel():
    vector, pixel = torch.randn(1, 5), torch.randn(1, 5, 1, 1)
    with pytest.raises(ValueError, match="standardize: 'batch' needs two values or more of each l"):
        standardized(vector, None, "batch")
    with pytest.raises(
        ValueError, match="'channels' needs two values or more of each channel, got one; 'sa"
    ):
        standardized(pixel, ("mean", 1), "channels")
    for found, _ in (
        standardized(vector, None, "sample"),
        standardized(pixel, ("mean", 1), "sample"),
        standardized(pixel.expand(2, 5, 1, 1), ("mean", 1), "channels"),
        standardized(torch.randn(1, 5, 2, 2), ("mean", 2), "channels"),
    ):
        assert found.isfinite().all()


def test_what_is_left_as_it_is():
    rows, image = torch.randn(4, 3, 5), torch.randn(4, 3, 5, 5)
    assert standardized(rows, None, "channels")[0] is rows
    kept, pool = standardized(image, ("mean", 2), "none")
    assert kept is image and pool == ("mean", 2)


def test_an_unknown_choice():
    for name in ("bll", "pred"):
        with pytest.raises(ValueError, match="standardize: expected one of 'none', 'channels"):
            bll.get_rule(name, standardize="layer")


@pytest.mark.parametrize("over", ["sample", "channels"])
def test_the_executor_takes_the_same_steps(over):
    def learn(executor):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(6 * 36, 3),
        )  # fmt: skip
        rule = bll.get_rule("bll", standardize=over, pool=("mean", 3))
        x, y = torch.randn(8, 1, 6, 6), torch.arange(8) % 3
        bll.wrap(model, ["1", "3"], num_classes=3, rule=rule, example=x)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if executor:
            run = bll.executor(model, lambda p: torch.optim.SGD(p, 0.1), mode="pipelined")
            run.run([(x, y)] * 3)
        else:
            for _ in range(3):
                optimizer.zero_grad()
                model(x, y=y).loss.backward()
                optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    for own, other in zip(learn(True), learn(False), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
