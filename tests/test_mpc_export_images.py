"""The images that a bundle is made with and evaluated on are those that a run evaluates on."""

import numpy as np
import pytest
import torch
from fake_sets import save_image

from autorep.data.datasets import dataset_info
from autorep.data.loader import make_loaders
from autorep.mpc.export.images import read_images


@pytest.fixture(params=[True, False], ids=["streamed", "in memory"])
def folder(request, tmp_path):
    rng = np.random.default_rng(0)
    for split, num_images in (("train", 8), ("val", 5)):
        for i in range(num_images):
            save_image(rng.integers(0, 256, (30, 30 + i * request.param, 3), dtype=np.uint8),
                       tmp_path / split / "ab"[i % 2] / f"{i}.png")
    assert dataset_info("folder", tmp_path).streaming == request.param
    return tmp_path


def test_they_are_those_of_the_loader_at_the_places_asked_for(folder):
    info, loaders = dataset_info("folder", folder), make_loaders("folder", folder, 2, device="cpu", seed=0, workers=0,
                                                                 validation_fraction=0.0)
    all_images, labels = (torch.cat(parts) for parts in zip(*(batch[:2] for batch in loaders.test.batches(0)),
                                                            strict=True))
    found = read_images(info, folder, {"test": lambda n: np.arange(0, n, 2), "train": lambda n: np.array([n - 1])})
    images, own_labels = found["test"]
    assert torch.equal(images, all_images[::2]) and own_labels.tolist() == labels[::2].tolist()
    assert images.is_contiguous() and len(found["train"][0]) == 1
