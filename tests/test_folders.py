"""Image folders as people have them: every image is found, or a warning counts what is left out."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
from fake_sets import random_set, write_tree
from PIL import Image

from autorep.data.datasets import dataset_info, read_arrays
from autorep.data.folders import list_train


@pytest.fixture
def root(tmp_path):
    arrays = random_set(8, 10, 3, 2)
    for split in ("train", "test"):
        write_tree(tmp_path / split, arrays, "ab")
    return tmp_path


def count(root) -> int:
    return len(list_train(root, ["a", "b"]))


def test_images_with_other_endings_are_counted(root):
    (root / "train" / "a" / "000.png").rename(root / "train" / "a" / "000.GIF")
    (root / "train" / "b" / "more").mkdir()
    (root / "train" / "b" / "001.png").rename(root / "train" / "b" / "more" / "001.jfif")
    with pytest.warns(UserWarning, match=r"2 images in .*train are left out, such as .*000.GIF: .* in .gif, .jfif are"):
        assert count(root) == 6


def test_notes_beside_images_are_no_reason_to_warn(root):
    for name in ("boxes.txt", "Thumbs.db", ".DS_Store", "._000.png", "labels.json"):
        (root / "train" / "a" / name).write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count(root) == 8


def test_an_image_whose_name_starts_with_a_dot_is_found(root):
    (root / "train" / "a" / "000.png").rename(root / "train" / "a" / ".000.png")
    assert count(root) == 8


def test_a_link_back_up_does_not_list_images_again(root):
    (root / "train" / "a" / "self").symlink_to(root / "train" / "a")
    (root / "train" / "b" / "all").symlink_to(root)
    assert count(root) == 8


def test_a_folder_that_cannot_be_listed_is_an_error(root, monkeypatch):
    (root / "train" / "a" / "private").mkdir()

    def scandir(path):
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="private"):
        count(root)


def test_classes_of_other_names_in_the_test_folder_are_shown(root):
    for name in "ab":
        (root / "test" / name).rename(root / "test" / name.upper())
    with pytest.raises(FileNotFoundError, match=r"the classes \['a', 'b'\] and the folders \['test/A', 'test/B'\]"):
        dataset_info("folder", root)


def test_grey_images_of_16_bits_make_one_channel_too(root):
    for path in root.rglob("*.png"):
        Image.fromarray(np.full((10, 10), 257 * 200, np.uint16)).save(path)
    info = dataset_info("folder", root)
    assert (info.in_channels, info.horizontal_flip) == (1, False)
    assert (read_arrays(info, root)["train"].images == 200).all()
