"""Augmentation against a plain loop over images, and the laws its randomness must follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autorep.data.augment import CropFlip, Normaliser, crop_flip, draw_corners


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
def test_equals_a_loop_over_images(shape, padding):
    images = random_images(40, *shape)
    drawn = CropFlip(draw_corners(40, padding, torch.Generator().manual_seed(1)), torch.arange(40) % 3 == 0)
    found = crop_flip(images, padding, drawn)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), crop_flip_by_loop(images, padding, drawn))


def test_nothing_to_do_changes_nothing():
    images = random_images(10)
    drawn = CropFlip(draw_corners(10, 0, torch.Generator()), torch.zeros(10, dtype=torch.bool))
    assert torch.equal(crop_flip(images, 0, drawn), images)


def test_corners_are_uniform_over_all_shifts():
    num_images, padding = 25_000, 2
    corners = draw_corners(num_images, padding, torch.Generator().manual_seed(2))
    shifts = corners[:, 0] * 5 + corners[:, 1]
    counts = torch.bincount(shifts, minlength=25)
    assert len(counts) == 25
    assert counts.float().sub(1000).abs().max() < 150  # five standard deviations of a binomial of mean 1000


def test_normalising_is_the_closed_form_with_channels_last_in_memory():
    images = random_images(4, 5, 7, 3)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (images.numpy().astype(np.float64) / 255 - mean) / std
    found = Normaliser(mean, std)(images)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
