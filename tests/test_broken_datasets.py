"""A missing set says how to get it, a damaged one names the file."""

from __future__ import annotations

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from fake_sets import (
    CIFAR10_CLASSES,
    cifar_pickle,
    load_arrays,
    random_set,
    save_image,
    shrink,
    small_cifar10,
    small_tiny_imagenet,
    write_cifar10,
    write_mnist,
    write_tiny_imagenet,
    write_tree,
)

from autorep.data.datasets import dataset_info, read_lists


@pytest.fixture
def cifar10(monkeypatch):
    return small_cifar10(monkeypatch)


@pytest.fixture
def tiny_imagenet(monkeypatch):
    return small_tiny_imagenet(monkeypatch)


@pytest.mark.parametrize(
    ("name", "help_text"),
    [
        ("cifar10", "bash dataset_download/download_cifar.sh {} cifar10"),
        ("cifar100", "bash dataset_download/download_cifar.sh {} cifar100"),
        ("tiny_imagenet", "bash dataset_download/download_tinyimagenet.sh {}"),
        ("mnist", "train-images-idx3-ubyte.gz"),
        ("fashion_mnist", "{}/fashion_mnist"),
        ("imagenet", "{}/imagenet/train/WNID"),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_missing_set_says_how_to_get_it(tmp_path, name, help_text, exists):
    data_path = tmp_path if exists else tmp_path / "nowhere"
    info = dataset_info(name, data_path)
    with pytest.raises(FileNotFoundError) as caught:
        read_lists(info, data_path) if info.streaming else load_arrays(name, data_path)
    assert help_text.format(data_path) in str(caught.value)
    assert f"{name}-train-images.npy" in str(caught.value)


def test_the_command_survives_a_data_path_with_a_space(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"download_cifar.sh '.*/my data' cifar10"):
        load_arrays("cifar10", tmp_path / "my data")


def test_a_set_on_disk_needs_a_data_path():
    with pytest.raises(ValueError, match="data_path"):
        load_arrays("cifar10", None)


def test_truncated_image_is_named(tmp_path, cifar10):
    write_tree(tmp_path / "train", cifar10[0], CIFAR10_CLASSES)
    write_tree(tmp_path / "test", cifar10[1], CIFAR10_CLASSES)
    path = tmp_path / "train" / "bird" / "002.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"train/bird/002.png is damaged"):
        load_arrays("cifar10", tmp_path)


def test_image_of_another_size_is_named(tmp_path, cifar10):
    write_tree(tmp_path / "train", cifar10[0], CIFAR10_CLASSES)
    write_tree(tmp_path / "test", cifar10[1], CIFAR10_CLASSES)
    save_image(random_set(1, 31, 3, 1).images[0], tmp_path / "test" / "bird" / "002.png")
    with pytest.raises(ValueError, match=r"test/bird/002.png measures \(31, 31\)"):
        load_arrays("cifar10", tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "other label key", "absent"])
def test_damaged_pickle_is_named(tmp_path, cifar10, damage):
    write_cifar10(tmp_path / "cifar-10-batches-py", *cifar10)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif damage == "other label key":
        path.write_bytes(cifar_pickle(random_set(4, 32, 3, 10), b"coarse_labels"))
    else:
        path.unlink()
    with pytest.raises(ValueError, match="cifar-10-batches-py/data_batch_3"):
        load_arrays("cifar10", tmp_path)


class RunsCode:
    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_pickle_cannot_run_code(tmp_path, cifar10):
    write_cifar10(tmp_path / "cifar-10-batches-py", *cifar10)
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(RunsCode(tmp_path / "proof")))
    with pytest.raises(ValueError, match=r"data_batch_1.*posix.mkdir"):
        load_arrays("cifar10", tmp_path)
    assert not (tmp_path / "proof").exists()


def test_truncated_archive_is_named(tmp_path, cifar10):
    blob = io.BytesIO()
    write_cifar10(tmp_path / "elsewhere" / "cifar-10-batches-py", *cifar10)
    with tarfile.open(fileobj=blob, mode="w:gz") as tar:
        tar.add(tmp_path / "elsewhere" / "cifar-10-batches-py", "cifar-10-batches-py")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(blob.getvalue()[:20_000])
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is damaged"):
        load_arrays("cifar10", tmp_path)


def test_wrong_number_of_images_is_refused(tmp_path, cifar10):
    write_cifar10(tmp_path / "cifar-10-batches-py", cifar10[0].subset(np.arange(15)), cifar10[1])
    with pytest.raises(ValueError, match=rf"{tmp_path}.*15 train images instead of 20"):
        load_arrays("cifar10", tmp_path)


def test_wrong_number_of_classes_is_refused(tmp_path, cifar10):
    write_tree(tmp_path / "train", random_set(9, 32, 3, 9), CIFAR10_CLASSES)
    with pytest.raises(ValueError, match=r"train has 9 class folders; cifar10 has 10"):
        load_arrays("cifar10", tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_truncated_idx_file_is_named(tmp_path, monkeypatch, suffix):
    shrink(monkeypatch, "mnist", 12, 10)
    write_mnist(tmp_path, random_set(12, 28, 1, 10), random_set(10, 28, 1, 10), suffix)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        load_arrays("mnist", tmp_path)


def test_damaged_annotations_are_named(tmp_path, tiny_imagenet):
    write_tiny_imagenet(tmp_path, *tiny_imagenet)
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text()[:-40])
    with pytest.raises(ValueError, match=r"val_annotations.txt is damaged"):
        load_arrays("tiny_imagenet", tmp_path)
