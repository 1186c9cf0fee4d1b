"""Augmentation against a plain loop over images, and the laws its randomness must follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autorep.data.augment import CropFlip, Normaliser, augment, crop_flip, draw_crop_flip


def random_images(num_images: int, height: int = 6, width: int = 6, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (num_images, height, width, channels), generator=generator).to(torch.uint8)


def crop_flip_by_loop(images: torch.Tensor, padding: int, drawn: CropFlip) -> np.ndarray:
    results = []
    for image, (row, column), mirror in zip(
        images.numpy(), drawn.corners.tolist(), drawn.mirrored.tolist(), strict=True
    ):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        crop = padded[row : row + image.shape[0], column : column + image.shape[1]]
        results.append(crop[:, ::-1] if mirror else crop)
    return np.stack(results)


@pytest.mark.parametrize("shape", [(6, 6, 3), (5, 8, 1)])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_equals_a_loop_over_images(shape, padding, flip):
    images = random_images(40, *shape)
    drawn = draw_crop_flip(40, padding, flip, torch.Generator().manual_seed(1))
    found = crop_flip(images, padding, drawn)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), crop_flip_by_loop(images, padding, drawn))


def test_augment_is_the_draw_followed_by_the_gather():
    images = random_images(10)
    drawn = draw_crop_flip(10, 2, True, torch.Generator().manual_seed(5))
    assert torch.equal(augment(images, 2, True, torch.Generator().manual_seed(5)), crop_flip(images, 2, drawn))


def test_nothing_to_do_changes_nothing():
    images = random_images(10)
    assert torch.equal(augment(images, 0, False, torch.Generator()), images)


def test_draws_are_uniform_over_all_shifts_and_fair():
    num_images, padding = 25_000, 2
    drawn = draw_crop_flip(num_images, padding, True, torch.Generator().manual_seed(2))
    shifts = drawn.corners[:, 0] * 5 + drawn.corners[:, 1]
    counts = torch.bincount(shifts, minlength=25)
    assert len(counts) == 25
    assert counts.float().sub(1000).abs().max() < 150  # five standard deviations of a binomial of mean 1000
    assert abs(drawn.mirrored.float().mean() - 0.5) < 0.016


def test_switching_the_flip_off_keeps_the_shifts():
    on, off = (draw_crop_flip(50, 3, flip, torch.Generator().manual_seed(3)) for flip in (True, False))
    assert torch.equal(on.corners, off.corners)
    assert on.mirrored.any() and not off.mirrored.any()


def test_normalising_is_the_closed_form_with_channels_last_in_memory():
    images = random_images(4, 5, 7, 3)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (images.numpy().astype(np.float64) / 255 - mean) / std
    found = Normaliser(mean, std)(images)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
