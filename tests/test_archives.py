"""Official archives as they arrive: packed again, incomplete, of something else, or made to fill the memory."""

from __future__ import annotations

import pickle
import tarfile

import numpy as np
import pytest
from fake_sets import assert_same, load_arrays, random_set, shrink, small_cifar10, write_cifar10, write_idx, write_mnist


@pytest.fixture
def cifar10(monkeypatch):
    return small_cifar10(monkeypatch)


def pack(folder, path, mode="w:gz", prefix=""):
    with tarfile.open(path, mode) as tar:
        tar.add(folder, f"{prefix}cifar-10-batches-py")


def test_an_archive_that_someone_packed_again_is_read(tmp_path, cifar10):
    write_cifar10(tmp_path / "elsewhere" / "cifar-10-batches-py", *cifar10)
    pack(tmp_path / "elsewhere" / "cifar-10-batches-py", tmp_path / "cifar-10-python.tar.gz", prefix="./")
    assert_same(load_arrays("cifar10", tmp_path)["train"], cifar10[0])


def test_a_whole_archive_of_something_else_is_not_called_damaged(tmp_path, cifar10):
    write_cifar10(tmp_path / "elsewhere" / "cifar-10-batches-py", *cifar10)
    (tmp_path / "elsewhere" / "cifar-10-batches-py" / "data_batch_4").unlink()
    pack(tmp_path / "elsewhere" / "cifar-10-batches-py", tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(ValueError, match=r"tar.gz holds no file cifar-10-batches-py/data_batch_4 of CIFAR"):
        load_arrays("cifar10", tmp_path)


@pytest.mark.parametrize(("change", "reason"), [
    (lambda content: content.update({b"data": content[b"data"].astype(np.float64)}), "data_batch_2.*float64"),
    (lambda content: content.update({b"labels": [10] * 4}), r"labels outside 0\.\.9"),
])
def test_numbers_that_are_not_of_cifar_are_refused_before_they_are_kept(tmp_path, cifar10, change, reason):
    write_cifar10(tmp_path / "cifar-10-batches-py", *cifar10)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    content = pickle.loads(path.read_bytes(), encoding="bytes")
    change(content)
    path.write_bytes(pickle.dumps(content, protocol=2))
    for _ in range(2):
        with pytest.raises(ValueError, match=reason):
            load_arrays("cifar10", tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_a_file_that_unpacks_to_more_than_any_set_has_is_refused_before(tmp_path, monkeypatch):
    monkeypatch.setattr("autorep.data.archives._LARGEST_FILE", 20_000)
    shrink(monkeypatch, "mnist", 12, 10)
    write_mnist(tmp_path, random_set(12, 28, 1, 10), random_set(10, 28, 1, 10), ".gz")
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((1000, 28, 28), np.uint8))
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz is damaged: its 20000 bytes"):
        load_arrays("mnist", tmp_path)
