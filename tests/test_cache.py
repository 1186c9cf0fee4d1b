"""The cache of decoded arrays: never a mixed pair, built once, and done without where nothing can be written."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from fake_sets import (
    assert_same,
    load_arrays,
    random_set,
    small_cifar10,
    write_cifar10,
)

from autorep.data import cache
from autorep.data.arrays import ArraySet
from autorep.machine import files


@pytest.fixture
def cifar10(monkeypatch):
    return small_cifar10(monkeypatch)


@pytest.fixture
def built(tmp_path, cifar10):
    """A folder whose CIFAR-10 has been decoded once."""
    write_cifar10(tmp_path / "cifar-10-batches-py", *cifar10)
    load_arrays("cifar10", tmp_path)
    return tmp_path


def test_second_load_reads_the_cache_alone(built, cifar10):
    for path in (built / "cifar-10-batches-py").iterdir():
        path.unlink()
    assert_same(load_arrays("cifar10", built)["train"], cifar10[0])
    assert not list(built.glob("*.tmp"))


@pytest.mark.parametrize("lost", ["images", "labels"])
def test_half_a_pair_is_built_again(built, cifar10, lost):
    (built / f"cifar10-train-{lost}.npy").unlink()
    left = built / f".cifar10-train-{lost}.npy.123"
    left.write_bytes(b"left by a killed writer")
    assert_same(load_arrays("cifar10", built)["train"], cifar10[0])
    assert not left.exists()


@pytest.mark.parametrize(
    ("which", "content"),
    [
        ("images", np.zeros((20, 31, 32, 3), np.uint8)),
        ("images", np.zeros((20, 32, 32, 3), np.float32)),
        ("labels", np.zeros(19, np.int64)),
        ("labels", np.full(20, 10)),
        ("labels", np.zeros(20)),
    ],
)
def test_arrays_that_do_not_fit_are_named(built, which, content):
    np.save(built / f"cifar10-train-{which}.npy", content)
    with pytest.raises(ValueError, match=f"cifar10-train-{which}.npy"):
        load_arrays("cifar10", built)


def test_truncated_array_is_named(built):
    path = built / "cifar10-test-images.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"cifar10-test-images.npy is damaged"):
        load_arrays("cifar10", built)


def build_until_killed(data_path, ready) -> None:
    def build() -> ArraySet:
        ready.set()
        return random_set(3, 8, 3, 3)

    def replace_then_hang(*paths) -> None:
        rename(*paths)
        time.sleep(60)

    rename, os.replace = os.replace, replace_then_hang
    cache.cached(data_path, "set", "train", build)


def test_writer_killed_between_the_two_files_leaves_no_mixed_pair(tmp_path):
    old, new = random_set(3, 8, 3, 3, seed=1), random_set(3, 8, 3, 3, seed=2)
    cache.cached(tmp_path, "set", "train", lambda: old)
    images, labels = cache.array_paths(tmp_path, "set", "train")
    images.unlink()  # so the next writer starts while the old labels still lie there
    process = multiprocessing.get_context("fork").Process(
        target=build_until_killed, args=(tmp_path, multiprocessing.Event())
    )
    process.start()
    while not images.exists() and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert images.exists() and not labels.exists()
    assert_same(cache.cached(tmp_path, "set", "train", lambda: new), new)  # and the dead writer's lock is free


def build_slowly(data_path, counter) -> None:
    def build() -> ArraySet:
        with counter.get_lock():
            counter.value += 1
        time.sleep(0.3)
        return random_set(3, 8, 3, 3)

    assert_same(cache.cached(data_path, "set", "train", build), random_set(3, 8, 3, 3))


def test_two_processes_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    counter = context.Value("i", 0)
    processes = [context.Process(target=build_slowly, args=(tmp_path, counter)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert counter.value == 1


@pytest.mark.parametrize("failing", ["flock", "replace"])
def test_unwritable_data_path_warns_and_goes_on(tmp_path, monkeypatch, cifar10, failing):
    def refuse(*_):
        raise PermissionError("read-only")

    write_cifar10(tmp_path / "cifar-10-batches-py", *cifar10)
    monkeypatch.setattr(*((files.fcntl, "flock") if failing == "flock" else (files.os, "replace")), refuse)
    with pytest.warns(UserWarning, match="read-only"):
        arrays = load_arrays("cifar10", tmp_path)
    assert_same(arrays["train"], cifar10[0])
    assert not list(tmp_path.glob("*.npy*"))


def test_a_flipped_byte_is_never_loaded(built):
    for name in ("images", "labels"):
        path = built / f"cifar10-test-{name}.npy"
        whole = path.read_bytes()
        for place in [*range(0, 130, 9), *range(130, len(whole), 4999), len(whole) - 9, len(whole) - 1]:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1:])
            with pytest.raises(ValueError, match=rf"cifar10-test-{name}.npy"):
                load_arrays("cifar10", built)
        path.write_bytes(whole)


def test_arrays_that_a_user_puts_in_place_of_the_cache_have_no_checksum_to_differ_from(built):
    other = random_set(10, 32, 3, 10, seed=5)
    np.save(built / "cifar10-test-images.npy", other.images)
    assert_same(load_arrays("cifar10", built)["test"], other)


def test_an_array_that_the_system_does_not_give_is_not_called_damaged(built):
    path = built / "cifar10-test-images.npy"
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="cifar10-test-images.npy"):
        load_arrays("cifar10", built)
