"""Batches are a pure function of (seed, epoch, step), for arrays and for streamed files alike."""

from __future__ import annotations

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from fake_sets import load_arrays
from PIL import Image

from autorep.data.arrays import ArraySet
from autorep.data.augment import CropFlip, Normaliser, crop_flip, draw_corners
from autorep.data.batch import Batch
from autorep.data.catalog import DatasetInfo
from autorep.data.folders import class_names, list_train
from autorep.data.loader import ArrayLoader, make_loaders
from autorep.data.plan import BatchPlan, derived_seed, seeded_generator
from autorep.data.streaming import StreamingLoader
from autorep.machine.device import to_device

INFO = DatasetInfo("made", 4, 3, 6, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), False, crop_padding=2, horizontal_flip=True)
NORMALISE = Normaliser(INFO.mean, INFO.std)


def array_loader(num_images: int, batch_size: int, **options) -> ArrayLoader:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, 6, 6, 3), dtype=np.uint8)
    # The label is the number of the image, so that a batch tells what is in it.
    arrays = ArraySet(images, np.arange(num_images))
    return ArrayLoader(arrays, INFO, batch_size, **{"train": True, "device": "cpu", "seed": 7, **options})


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    """Eleven images of unequal size in four class folders."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(11):
        path = root / "train" / "abcd"[i % 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + i, 50 - i, 3), dtype=np.uint8)).save(path)
    return list_train(root, class_names(root))


def streaming_loader(images, batch_size: int, **options) -> StreamingLoader:
    info = dataclasses.replace(INFO, image_size=32, streaming=True)
    options = {"train": True, "device": "cpu", "seed": 7, "workers": 0, **options}
    return StreamingLoader(images, info, batch_size, **options)


@pytest.fixture(params=["arrays", "streaming"])
def make(request, image_files):
    """Builds either loader over eleven images."""
    if request.param == "arrays":
        return lambda batch_size, **options: array_loader(11, batch_size, **options)
    return lambda batch_size, **options: streaming_loader(image_files, batch_size, **options)


def seen_labels(loader, epoch: int = 0) -> list[int]:
    return [label for batch in loader.batches(epoch) for label in batch.labels.tolist()]


def assert_equal_batches(found, expected) -> None:
    found, expected = list(found), list(expected)
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


# --- both loaders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
def test_resuming_inside_an_epoch_gives_the_rest_of_it(make, train):
    whole = list(make(3, train=train).batches(2))
    assert_equal_batches(make(3, train=train).batches(2, start=1), whole[1:])


def test_the_global_random_state_plays_no_part_and_is_left_alone(make):
    torch.manual_seed(0)
    before, expected = torch.get_rng_state(), list(make(3).batches(0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert_equal_batches(make(3).batches(0), expected)


def test_seed_and_epoch_both_change_what_is_seen(make):
    first = next(make(3).batches(0)).images
    assert not torch.equal(first, next(make(3).batches(1)).images)
    assert not torch.equal(first, next(make(3, seed=8).batches(0)).images)


@pytest.mark.parametrize(("train", "batch_size", "world_size"), [(True, 4, 2), (True, 3, 3), (False, 4, 3)])
def test_ranks_together_see_what_one_process_would(make, train, batch_size, world_size):
    ranks = [
        list(make(batch_size, train=train, rank=rank, world_size=world_size).batches(1)) for rank in range(world_size)
    ]
    together = [Batch(torch.cat([part.images for part in step]), torch.cat([part.labels for part in step]))
                for step in zip(*ranks, strict=True)]
    assert_equal_batches(together, make(batch_size, train=train).batches(1))


def test_training_drops_the_partial_batch_and_repeats_no_image(make):
    loader = make(4)
    shapes = [len(batch.labels) for batch in loader.batches(0)]
    assert shapes == [4, 4] and loader.steps_per_epoch == 2 and loader.num_images == 11


def test_training_on_less_than_a_batch_takes_all_of_it(make):
    assert [len(batch.labels) for batch in make(64).batches(0)] == [11]
    assert make(64).steps_per_epoch == 1


def test_evaluation_sees_every_image_once_in_order_and_the_same_each_epoch(make):
    loader = make(4, train=False)
    assert [len(batch.labels) for batch in loader.batches(0)] == [4, 4, 3]
    assert seen_labels(loader) == sorted(seen_labels(loader))
    assert_equal_batches(loader.batches(0), loader.batches(9))


def test_without_augmentation_is_the_evaluation_of_the_same_images(make):
    assert_equal_batches(make(4).without_augmentation().batches(3), make(4, train=False).batches(0))


@pytest.mark.parametrize("rank", [0, 1])
def test_training_without_augmentation_shuffles_the_images_of_evaluation(make, rank):
    pixels = torch.cat([batch.images for batch in make(4, train=False).batches(0)])
    plain, augmented = (make(4, augment=augment, rank=rank, world_size=2) for augment in (False, True))
    for index, batch, other in zip(plain.indices(2), plain.batches(2), augmented.batches(2), strict=True):
        assert torch.equal(batch.images, pixels[index]) and not torch.equal(batch.images, other.images)


def test_images_are_floats_with_channels_last_in_memory_and_labels_int64(make):
    images, labels, teacher_logits = next(make(4).batches(0))
    assert images.dtype == torch.float32 and images.shape[:2] == (4, 3)
    assert images.is_contiguous(memory_format=torch.channels_last) and to_device(images, images.device) is images
    assert labels.dtype == torch.int64 and labels.shape == (4,) and teacher_logits is None


@pytest.mark.parametrize("start", [-1, 4])
def test_a_start_outside_the_epoch_is_refused_at_once(make, start):
    assert list(make(4).batches(0, start=2)) == []
    with pytest.raises(ValueError, match=f"start step {start}"):
        make(4).batches(0, start=start)


# --- arrays ------------------------------------------------------------------------------------------------------


def test_an_epoch_is_a_shuffle():
    labels = seen_labels(array_loader(12, 4))
    assert sorted(labels) == list(range(12)) != labels


def test_batch_is_the_augmented_images_of_its_labels():
    loader = array_loader(12, 4)
    images, labels, _ = list(loader.batches(3))[1]
    corners = draw_corners(4, INFO.crop_padding, seeded_generator(7, 3, 2))
    expected = crop_flip(loader.images[labels], INFO.crop_padding, CropFlip(corners, loader.mirrored(3)[labels]))
    assert torch.equal(images, NORMALISE(expected))


def test_half_of_the_images_are_mirrored_and_in_the_next_epoch_the_others():
    mirrored = [array_loader(1000, 4, seed=seed).mirrored(epoch) for seed in (7, 8) for epoch in (0, 1, 2)]
    assert abs(mirrored[0].sum() - 500) < 80  # five standard deviations
    assert torch.equal(mirrored[1], ~mirrored[0]) and torch.equal(mirrored[2], mirrored[0])
    assert abs((mirrored[0] ^ mirrored[3]).sum() - 500) < 80  # another seed mirrors others
    still = dataclasses.replace(INFO, horizontal_flip=False)
    arrays = ArraySet(np.zeros((9, 6, 6, 3), np.uint8), np.zeros(9, int))
    assert not ArrayLoader(arrays, still, 4, train=True, device="cpu", seed=7).mirrored(1).any()


def test_streamed_images_are_mirrored_in_every_second_epoch(image_files, monkeypatch):
    loader = streaming_loader(image_files, 4)
    monkeypatch.setattr(loader, "mirrored", lambda epoch: torch.arange(11) < 11 * epoch)  # none in epoch 0, then all
    monkeypatch.setattr("autorep.data.streaming.derived_seed", lambda seed, epoch, image: image)  # the same crops
    monkeypatch.setattr(loader, "indices", lambda epoch, start: iter([torch.arange(4)]))
    (plain, _, _), (mirrored, _, _) = (next(loader.batches(epoch)) for epoch in (0, 1))
    assert torch.equal(mirrored, plain.flip(3)) and not torch.equal(mirrored, plain)


def test_evaluation_does_not_augment():
    loader = array_loader(5, 4, train=False)
    images = torch.cat([batch.images for batch in loader.batches(0)])
    assert torch.equal(images, NORMALISE(loader.images))


def test_calibration_shares_the_memory_of_training():
    loader = array_loader(12, 4)
    assert loader.without_augmentation().images.data_ptr() == loader.images.data_ptr()


def test_teacher_logits_go_with_their_images():
    loader = array_loader(12, 4, rank=1, world_size=2)
    loader.add_teacher_logits_(torch.arange(24).reshape(12, 2))
    for _, labels, logits in loader.batches(1):
        assert torch.equal(logits, torch.stack([2 * labels, 2 * labels + 1], 1))  # a label is the image's number


def test_a_rank_with_nothing_left_gets_no_empty_batch():
    ranks = [array_loader(9, 4, train=False, rank=rank, world_size=4) for rank in range(4)]
    batches = [list(loader.batches(0)) for loader in ranks]
    assert all(len(batch.labels) for rank in batches for batch in rank)
    assert sorted(label for loader in ranks for label in seen_labels(loader)) == list(range(9))


# --- the plan ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": 10, "world_size": 4}, "use 8"),
        ({"batch_size": 2, "world_size": 4}, "use 4"),
        ({"rank": 1}, "rank 1"),
        ({"num_images": 1, "batch_size": 2, "world_size": 2}, "fewer than 2 ranks"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    sizes = {"num_images": 20, "batch_size": 4, "train": True, "seed": 0, "rank": 0, "world_size": 1, **options}
    with pytest.raises(ValueError, match=message):
        BatchPlan(**sizes)


def test_derived_seeds_are_all_different():
    keys = [(a, b, c) for a in range(8) for b in range(8) for c in range(8)] + [
        (a, b) for a in range(8) for b in range(8)
    ]
    assert len({derived_seed(*key) for key in keys}) == len(keys)


# --- streaming ---------------------------------------------------------------------------------------------------


def test_workers_give_what_one_process_gives(image_files):
    alone, helped = (streaming_loader(image_files, 4, workers=workers) for workers in (0, 2))
    assert_equal_batches(helped.batches(1), alone.batches(1))


def test_streamed_evaluation_takes_the_centre(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48, 16:48] = 255
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "train" / "a" / "0.png")
    info = dataclasses.replace(INFO, image_size=56)  # 64 pixels are resized to 64: the centre crop alone shows
    loader = StreamingLoader(list_train(tmp_path, ["a"]), info, 1, train=False, device="cpu", seed=0, workers=0)
    [batch] = loader.batches(0)
    assert torch.equal(batch.images, NORMALISE(torch.from_numpy(pixels[None, 4:60, 4:60])))


def test_of_a_very_long_image_the_centre_is_read(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (2, 5000, 3), dtype=np.uint8)
    (tmp_path / "train" / "a").mkdir(parents=True)
    for name, pixels in (("long.png", values), ("short.png", values[:, 2484:2516])):
        Image.fromarray(pixels).save(tmp_path / "train" / "a" / name)
    long, short = next(iter(streaming_loader(list_train(tmp_path, ["a"]), 2, train=False).batches(0))).images
    assert torch.equal(long, short)


def test_a_worker_that_is_killed_is_one_line(image_files, monkeypatch):
    monkeypatch.setattr("autorep.data.streaming.decode_image", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ValueError, match="was killed .* fewer than `data.workers`=1") as caught:
        list(streaming_loader(image_files, 4, workers=1).batches(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_streamed_image_is_named(tmp_path, workers):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "broken.png").write_bytes(b"\x89PNG\r\n")
    images = list_train(tmp_path, ["a"])
    with pytest.raises(ValueError, match=r"train/a/broken.png is damaged") as caught:
        list(streaming_loader(images, 1, workers=workers).batches(0))
    assert "\n" not in str(caught.value)


# --- the loaders of a run ----------------------------------------------------------------------------------------


def test_make_loaders_cuts_validation_from_training_and_leaves_test_alone():
    loaders = make_loaders("digits", None, 32, device="cpu", seed=1, validation_fraction=0.2)
    arrays = load_arrays("digits", None)
    assert loaders.train.num_images + loaders.validation.num_images == len(arrays["train"])
    assert loaders.validation.num_images == pytest.approx(0.2 * len(arrays["train"]), abs=5)
    assert torch.equal(loaders.test.images, torch.from_numpy(arrays["test"].images))
    assert loaders.calibration.num_images == loaders.train.num_images
    assert not loaders.calibration.plan.train and not loaders.validation.plan.train and not loaders.test.plan.train


def test_validation_does_not_depend_on_the_seed_of_the_run():
    one, other = (make_loaders("digits", None, 32, device="cpu", seed=seed) for seed in (1, 2))
    assert torch.equal(one.validation.images, other.validation.images)
    assert not torch.equal(next(one.train.batches(0)).labels, next(other.train.batches(0)).labels)


def test_no_validation_where_the_fraction_is_zero():
    loaders = make_loaders("digits", None, 32, device="cpu", seed=1, validation_fraction=0)
    assert loaders.validation is None and loaders.train.num_images == 1347


def test_a_folder_of_unequal_images_is_streamed(tmp_path):
    rng = np.random.default_rng(0)
    for split, num_images in (("train", 8), ("val", 2)):
        for i in range(num_images):
            path = tmp_path / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (30, 20 + i, 3), dtype=np.uint8)).save(path)
    loaders = make_loaders("folder", tmp_path, 2, device="cpu", seed=0, validation_fraction=0.25, workers=0)
    assert isinstance(loaders.train, StreamingLoader)
    assert [x.num_images for x in (loaders.train, loaders.validation, loaders.test, loaders.calibration)] == [
        6,
        2,
        2,
        6,
    ]
    assert set(loaders.train.images.paths).isdisjoint(loaders.validation.images.paths)
    assert next(loaders.train.batches(0)).images.shape == (2, 3, 224, 224)
