"""Random crops and mirror images, against a plain loop over the images."""

from __future__ import annotations

import pytest
import torch

from bll.data import Augmentation

BLACK = torch.tensor([-0.5, -1.0, -1.5], dtype=torch.float64)


def numbered(batch=6, channels=3, height=5, width=4):
    """No two pixels are equal, so every pixel tells where it came from."""
    count = batch * channels * height * width
    return torch.arange(count, dtype=torch.float64).view(batch, channels, height, width)


def cropped(image, black, crop, down, right, mirror):
    """One image with a border, cut out and mirrored, pixel by pixel."""
    channels, height, width = image.shape
    wide = torch.empty(channels, height + 2 * crop, width + 2 * crop, dtype=image.dtype)
    wide[:] = black[:, None, None]
    wide[:, crop : crop + height, crop : crop + width] = image
    cut = wide[:, down : down + height, right : right + width]
    return cut.flip(2) if mirror else cut


def explanations(image, result, black, crop):
    """Every (down, right, mirror) that gives the result."""
    places = range(2 * crop + 1)
    return [
        (down, right, mirror)
        for down in places
        for right in places
        for mirror in (False, True)
        if torch.equal(cropped(image, black, crop, down, right, mirror), result)
    ]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("crop", "flip"), [(0, True), (2, False), (2, True), (1, True)])
def test_every_image_is_a_crop_of_itself(crop, flip, layout, channels):
    images = numbered(channels=channels).contiguous(memory_format=layout)
    before = images.clone()
    augment = Augmentation(crop, flip, BLACK[:channels], seed=3)
    seen = set()
    for step in range(120):
        result = augment(images, step)
        assert result.is_contiguous(memory_format=layout)
        for image, out in zip(images, result, strict=True):
            found = explanations(image, out, BLACK[:channels], crop)
            assert len(found) == 1, found
            seen |= set(found)
    assert torch.equal(images, before)
    assert len(seen) == (2 * crop + 1) ** 2 * (1 + flip), "some place or mirror image never came"


def test_places_and_mirror_images_are_equally_likely():
    images = numbered(batch=400)
    augment = Augmentation(1, True, BLACK, seed=0)
    counts = {}
    for step in range(5):
        for image, out in zip(images, augment(images, step), strict=True):
            (found,) = explanations(image, out, BLACK, 1)
            counts[found] = counts.get(found, 0) + 1
    # 2000 draws of 18 outcomes: mean 111, standard deviation 10.
    assert len(counts) == 18 and all(61 < n < 161 for n in counts.values()), counts


def test_draws_depend_on_seed_and_step_alone():
    images = numbered(batch=32)
    torch.manual_seed(0)
    first = Augmentation(2, True, BLACK, seed=1)(images, 7)
    torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(Augmentation(2, True, BLACK, seed=1)(images, 7), first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert not torch.equal(Augmentation(2, True, BLACK, seed=2)(images, 7), first)
    assert not torch.equal(Augmentation(2, True, BLACK, seed=1)(images, 8), first)


def test_nothing_asked_for_nothing_done():
    images = numbered()
    assert Augmentation(0, False, BLACK, seed=0)(images, 0) is images


def test_refuses_a_negative_border():
    with pytest.raises(ValueError, match="crop: expected 0 or more, got -1"):
        Augmentation(-1, False, BLACK, seed=0)
