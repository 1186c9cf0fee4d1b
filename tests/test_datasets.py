"""Data sets by name: every accepted layout gives the same arrays."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
from fake_sets import (
    CIFAR10_CLASSES,
    assert_same,
    by_class,
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
from PIL import Image
from torchvision.datasets import ImageFolder

from autorep.data import survey
from autorep.data.arrays import split_train
from autorep.data.datasets import dataset_info, read_lists


@pytest.fixture
def cifar10(monkeypatch):
    return small_cifar10(monkeypatch)


@pytest.fixture
def tiny_imagenet(monkeypatch):
    return small_tiny_imagenet(monkeypatch)


def test_unknown_name_lists_the_legal_ones():
    with pytest.raises(ValueError, match=r"'cifar11'.*digits, mnist, fashion_mnist, cifar10, .*imagenet, folder"):
        dataset_info("cifar11", None)


def test_written_characters_are_never_mirrored():
    assert not dataset_info("digits", None).horizontal_flip
    assert not dataset_info("mnist", None).horizontal_flip
    assert dataset_info("cifar100", None).horizontal_flip


def test_digits_are_the_bundled_ones_with_a_stratified_test_quarter():
    from sklearn.datasets import load_digits

    arrays, info = load_arrays("digits", None), dataset_info("digits", None)
    both = np.concatenate([arrays["train"].images, arrays["test"].images])[..., 0]
    expected = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(np.unique(both, axis=0), np.unique(expected, axis=0))
    assert len(both) == 1797
    share = np.bincount(arrays["test"].labels) / np.bincount(load_digits().target)
    np.testing.assert_allclose(share, 0.25, atol=0.005)
    np.testing.assert_allclose([both.mean() / 255, both.std() / 255], [*info.mean, *info.std], atol=1e-4)
    assert_same(load_arrays("digits", None)["test"], arrays["test"])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3])
def test_split_is_disjoint_exhaustive_and_stratified(fraction):
    arrays = random_set(400, 8, 1, 4)
    train, validation = split_train(arrays, fraction)
    pooled = np.concatenate([train.images, validation.images]).reshape(400, -1)
    np.testing.assert_array_equal(np.unique(pooled, axis=0), np.unique(arrays.images.reshape(400, -1), axis=0))
    assert len(train) + len(validation) == 400
    np.testing.assert_array_equal(np.bincount(validation.labels, minlength=4), round(fraction * 100))
    again = split_train(arrays, fraction)
    assert_same(again[0], train)
    assert_same(again[1], validation)


def test_split_is_shuffled_so_that_its_head_is_a_fair_sample():
    train, _ = split_train(by_class(random_set(400, 8, 1, 4)), 0.1)
    assert set(train.labels[:20]) == {0, 1, 2, 3}


@pytest.mark.parametrize(("fraction", "message"), [(1.0, "less than 1"), (-0.1, "or more"), (0.01, "no class"),
                                                     (0.99, "none is left")])
def test_split_refuses_a_fraction_that_cannot_be_cut(fraction, message):
    with pytest.raises(ValueError, match=message):
        split_train(random_set(40, 8, 1, 4), fraction)


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar_from_its_pickles(tmp_path, cifar10, below):
    write_cifar10(tmp_path / below / "cifar-10-batches-py", *cifar10)
    arrays = load_arrays("cifar10", tmp_path)
    assert_same(arrays["train"], cifar10[0])
    assert_same(arrays["test"], cifar10[1])


def test_cifar_from_inside_its_own_folder(tmp_path, cifar10):
    write_cifar10(tmp_path / "anything", *cifar10)
    assert_same(load_arrays("cifar10", tmp_path / "anything")["train"], cifar10[0])


def test_cifar_from_the_packed_archive(tmp_path, cifar10):
    write_cifar10(tmp_path / "elsewhere" / "cifar-10-batches-py", *cifar10)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "elsewhere" / "cifar-10-batches-py", "cifar-10-batches-py")
    assert_same(load_arrays("cifar10", tmp_path)["train"], cifar10[0])


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-python.tar"])
def test_cifar_from_an_archive_that_was_gunzipped(tmp_path, cifar10, name):
    write_cifar10(tmp_path / "elsewhere" / "cifar-10-batches-py", *cifar10)
    with tarfile.open(tmp_path / name, "w") as tar:
        tar.add(tmp_path / "elsewhere" / "cifar-10-batches-py", "cifar-10-batches-py")
    assert_same(load_arrays("cifar10", tmp_path)["train"], cifar10[0])


def test_cifar100_reads_its_fine_labels(tmp_path, monkeypatch):
    shrink(monkeypatch, "cifar100", 100, 100)
    arrays = random_set(100, 32, 3, 100)
    (tmp_path / "cifar-100-python").mkdir()
    for split in ("train", "test"):
        (tmp_path / "cifar-100-python" / split).write_bytes(cifar_pickle(arrays, b"fine_labels"))
    assert_same(load_arrays("cifar100", tmp_path)["test"], arrays)


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar_from_an_image_tree_numbers_classes_by_sorted_name(tmp_path, cifar10, below):
    write_tree(tmp_path / below / "train", cifar10[0], CIFAR10_CLASSES)
    write_tree(tmp_path / below / "test", cifar10[1], CIFAR10_CLASSES)
    arrays = load_arrays("cifar10", tmp_path)
    assert_same(arrays["train"], by_class(cifar10[0]))
    assert_same(arrays["test"], by_class(cifar10[1]))


def test_arrays_of_the_user_are_taken_as_they_are(tmp_path):
    for split in ("train", "test"):
        np.save(tmp_path / f"cifar10-{split}-images.npy", random_set(7, 32, 3, 10).images)
        np.save(tmp_path / f"cifar10-{split}-labels.npy", np.arange(7, dtype=np.uint8))
    assert_same(load_arrays("cifar10", tmp_path)["train"], random_set(7, 32, 3, 10))


@pytest.mark.parametrize(
    ("name", "below", "suffix"),
    [("mnist", "MNIST/raw", ""), ("mnist", "", ".gz"), ("fashion_mnist", "FashionMNIST/raw", ".gz")],
)
def test_mnist_from_idx_files(tmp_path, monkeypatch, name, below, suffix):
    shrink(monkeypatch, name, 12, 10)
    train, test = random_set(12, 28, 1, 10), random_set(10, 28, 1, 10, seed=1)
    write_mnist(tmp_path / below, train, test, suffix)
    arrays = load_arrays(name, tmp_path)
    assert_same(arrays["train"], train)
    assert_same(arrays["test"], test)


@pytest.mark.parametrize("rename", [lambda name: name.replace("-idx", ".idx"), lambda name: f"{name}.gz"],
                         ids=["dot", "plain under .gz"])
def test_mnist_under_the_names_of_unpacking_tools(tmp_path, monkeypatch, rename):
    shrink(monkeypatch, "mnist", 12, 10)
    train, test = random_set(12, 28, 1, 10), random_set(10, 28, 1, 10, seed=1)
    write_mnist(tmp_path, train, test, "")
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(rename(path.name)))
    assert_same(load_arrays("mnist", tmp_path)["train"], train)


def test_tiny_imagenet_tests_on_the_official_validation_split(tmp_path, tiny_imagenet):
    train, val, classes = tiny_imagenet
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200", train, val, classes)
    arrays = load_arrays("tiny_imagenet", tmp_path)
    assert_same(arrays["train"], by_class(train))
    assert_same(arrays["test"], val)


def test_tiny_imagenet_with_validation_sorted_into_class_folders(tmp_path, tiny_imagenet):
    train, val, classes = tiny_imagenet
    write_tiny_imagenet(tmp_path, train, val, classes)
    for path in (tmp_path / "val" / "images").iterdir():  # the emptied folder stays, as sorting scripts leave it
        path.unlink()
    write_tree(tmp_path / "val", val, classes)
    assert_same(load_arrays("tiny_imagenet", tmp_path)["test"], by_class(val))


def test_grey_images_of_a_colour_set_become_rgb(tmp_path, tiny_imagenet):
    train, val, classes = tiny_imagenet
    write_tiny_imagenet(tmp_path, train, val, classes)
    save_image(train.images[0][..., :1], tmp_path / "train" / "n01" / "images" / "0.png")
    first = load_arrays("tiny_imagenet", tmp_path)["train"].images[0]
    np.testing.assert_array_equal(first, np.repeat(train.images[0][..., :1], 3, axis=-1))


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_folder_of_equal_squares_is_described_from_its_files(tmp_path, held_out):
    train, test = random_set(12, 16, 3, 3), random_set(4, 16, 3, 2, seed=1)
    write_tree(tmp_path / "train", train, "abc")
    write_tree(tmp_path / held_out, test, "abc")
    info = dataset_info("folder", tmp_path)
    assert (info.num_classes, info.in_channels, info.image_size, info.streaming) == (3, 3, 16, False)
    np.testing.assert_allclose(info.mean, train.images.mean((0, 1, 2)) / 255, atol=1e-9)
    np.testing.assert_allclose(info.std, train.images.std((0, 1, 2)) / 255, atol=1e-9)
    arrays = load_arrays("folder", tmp_path)
    assert_same(arrays["train"], by_class(train))
    assert_same(arrays["test"], by_class(test))


def test_folder_of_grey_images_has_one_channel_and_no_mirroring(tmp_path):
    arrays = random_set(4, 10, 1, 2)
    write_tree(tmp_path / "train", arrays, "ab")
    write_tree(tmp_path / "test", arrays, "ab")
    info = dataset_info("folder", tmp_path)
    assert (info.in_channels, info.horizontal_flip) == (1, False)
    assert_same(load_arrays("folder", tmp_path)["train"], by_class(arrays))


def test_folder_finds_what_torchvision_finds(tmp_path):
    arrays = random_set(8, 10, 3, 2)
    write_tree(tmp_path / "train", arrays, "ab")
    write_tree(tmp_path / "test", arrays, "ab")
    write_tree(tmp_path / "train" / "a" / "2024", arrays, ("session 1", "session 2"))
    (tmp_path / "train" / "b" / "link").symlink_to(tmp_path / "test" / "b")
    listed = ImageFolder(tmp_path / "train")
    found = load_arrays("folder", tmp_path)["train"]
    assert found.labels.tolist() == listed.targets and len(found) == 20
    assert all(np.array_equal(image, np.asarray(other)) for image, (other, _) in zip(found.images, listed, strict=True))


def grey(folder, mode, values):
    for split in ("train", "test"):
        for name in "ab":
            path = folder / split / name / ("0.png" if mode == "png" else "0.tif")
            path.parent.mkdir(parents=True)
            Image.fromarray(values).save(path)


@pytest.mark.parametrize(("mode", "dtype", "scale"), [("F", np.float32, 1 / 255), ("I;16", np.uint16, 257),
                                                      ("png", np.uint16, 257), ("L", np.uint8, 1)])
def test_grey_images_of_every_depth_keep_their_values(tmp_path, mode, dtype, scale):
    values = np.arange(256).reshape(16, 16)
    grey(tmp_path, mode, (values * scale).astype(dtype))
    assert np.array_equal(load_arrays("folder", tmp_path)["train"].images[0, ..., 0], values)


@pytest.mark.parametrize(("values", "reason"), [
    (np.full((8, 8), 200, np.float32), "floats from 200 to 200"),
    (np.full((8, 8), np.nan, np.float32), "floats from nan"),
    (np.full((8, 8), 200, np.int32), "whole numbers with a sign or of 32 bits"),
])
def test_numbers_without_a_known_white_are_refused(tmp_path, values, reason):
    grey(tmp_path, "", values)
    with pytest.raises(ValueError, match=rf"0\.tif holds {reason}"):
        load_arrays("folder", tmp_path)


@pytest.mark.parametrize("reason", ["sizes differ", "not square", "too large for memory"])
def test_folder_is_streamed_where_it_cannot_be_held(tmp_path, monkeypatch, reason):
    arrays = random_set(4, 16, 3, 2)
    write_tree(tmp_path / "train", arrays, "ab")
    write_tree(tmp_path / "test", arrays, "ab")
    if reason == "sizes differ":
        save_image(random_set(1, 20, 3, 1).images[0], tmp_path / "test" / "b" / "last.png")
    elif reason == "not square":
        for path in tmp_path.rglob("*.png"):
            Image.open(path).resize((16, 12)).save(path)
    else:
        monkeypatch.setattr(survey, "IN_MEMORY_BYTES", 1000)
    info = dataset_info("folder", tmp_path)
    assert (info.streaming, info.image_size) == (True, 224)
    assert len(read_lists(info, tmp_path)["train"]) == 4
    with pytest.raises(ValueError, match="stream"):
        load_arrays("folder", tmp_path)


def test_folder_with_a_test_class_unknown_to_training_names_it(tmp_path):
    write_tree(tmp_path / "train", random_set(4, 8, 3, 2), "ab")
    write_tree(tmp_path / "test", random_set(4, 8, 3, 2), "bz")
    with pytest.raises(ValueError, match=r"test/z"):
        dataset_info("folder", tmp_path)


def test_folder_class_without_images_is_named(tmp_path):
    write_tree(tmp_path / "train", random_set(4, 8, 3, 2), "ab")
    write_tree(tmp_path / "test", random_set(4, 8, 3, 2), "ab")
    (tmp_path / "train" / "c").mkdir()
    with pytest.raises(ValueError, match=r"train/c holds no images"):
        dataset_info("folder", tmp_path)


def test_folder_without_splits_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="train/CLASS/IMAGE"):
        dataset_info("folder", tmp_path)
