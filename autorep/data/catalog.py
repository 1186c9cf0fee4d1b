"""The table of named data sets: what they look like, how many images they have, and where to get them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autorep.data.archives import CifarLayout, read_idx
from autorep.data.arrays import ArraySet


@dataclass(frozen=True)
class DatasetInfo:
    """What a model and an input pipeline must know about a data set. `mean` and `std` are per channel, on a 0..1 scale.

    `crop_padding` is the number of pixels by which training images are shifted at random, at most; `streaming` sets
    are read from disk batch by batch instead of being held in memory.
    """

    name: str
    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    streaming: bool
    crop_padding: int
    horizontal_flip: bool


@dataclass(frozen=True)
class Source:
    """Where a named set comes from.

    `read_official` reads the official files of one split below a root, or returns None; `folders` are the names under
    which its files are looked for below the data path; `held_out` the folders, best first, that can be the test split.
    """

    info: DatasetInfo
    num_images: dict[str, int]
    folders: tuple[str, ...]
    held_out: tuple[str, ...]
    official_files: str
    how_to_get: str
    read_official: Callable[[Path, str], ArraySet | None] | None = None


CIFAR10_LAYOUT = CifarLayout(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    members={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    label_key="labels",
)
CIFAR100_LAYOUT = CifarLayout(
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    members={"train": ("train",), "test": ("test",)},
    label_key="fine_labels",
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DIGITS = DatasetInfo("digits", 10, 1, 8, (0.3053,), (0.3759,), False, crop_padding=1, horizontal_flip=False)

SOURCES: dict[str, Source] = {
    "mnist": Source(
        info=DatasetInfo("mnist", 10, 1, 28, (0.1307,), (0.3081,), False, crop_padding=2, horizontal_flip=False),
        num_images={"train": 60_000, "test": 10_000},
        folders=("MNIST/raw", "mnist"),
        held_out=("test", "val"),
        official_files="{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]",
        how_to_get=(
            "put the four .gz files (train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the two t10k ones) of "
            "https://ossci-datasets.s3.amazonaws.com/mnist/, a mirror of yann.lecun.com/exdb/mnist, into "
            "{data_path}/mnist"
        ),
        read_official=read_idx,
    ),
    "fashion_mnist": Source(
        info=DatasetInfo("fashion_mnist", 10, 1, 28, (0.2860,), (0.3530,), False, crop_padding=2, horizontal_flip=True),
        num_images={"train": 60_000, "test": 10_000},
        folders=("FashionMNIST/raw", "fashion_mnist"),
        held_out=("test", "val"),
        official_files="{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]",
        how_to_get=(
            "put the four .gz files of https://github.com/zalandoresearch/fashion-mnist into "
            "{data_path}/fashion_mnist; or on Debian: apt-get install dataset-fashion-mnist, then use the data path "
            "/usr/share/datasets/fashion-mnist"
        ),
        read_official=read_idx,
    ),
    "cifar10": Source(
        info=DatasetInfo(
            "cifar10", 10, 3, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), False,
            crop_padding=4, horizontal_flip=True,
        ),
        num_images={"train": 50_000, "test": 10_000},
        folders=("cifar10",),
        held_out=("test", "val"),
        official_files="cifar-10-batches-py/, cifar-10-python.tar.gz",
        how_to_get="bash dataset_download/download_cifar.sh {data_path} cifar10",
        read_official=CIFAR10_LAYOUT.read,
    ),
    "cifar100": Source(
        info=DatasetInfo(
            "cifar100", 100, 3, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), False,
            crop_padding=4, horizontal_flip=True,
        ),
        num_images={"train": 50_000, "test": 10_000},
        folders=("cifar100",),
        held_out=("test", "val"),
        official_files="cifar-100-python/, cifar-100-python.tar.gz",
        how_to_get="bash dataset_download/download_cifar.sh {data_path} cifar100",
        read_official=CIFAR100_LAYOUT.read,
    ),
    # The labels of the official test splits of the next two are secret: the official validation split is our test.
    "tiny_imagenet": Source(
        info=DatasetInfo(
            "tiny_imagenet", 200, 3, 64, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), False,
            crop_padding=8, horizontal_flip=True,
        ),
        num_images={"train": 100_000, "test": 10_000},
        folders=("tiny-imagenet-200", "tiny_imagenet"),
        held_out=("val", "test"),
        official_files="tiny-imagenet-200/",
        how_to_get="bash dataset_download/download_tinyimagenet.sh {data_path}",
    ),
    "imagenet": Source(
        info=DatasetInfo(
            "imagenet", 1000, 3, 224, IMAGENET_MEAN, IMAGENET_STD, True, crop_padding=0, horizontal_flip=True,
        ),
        num_images={"train": 1_281_167, "test": 50_000},
        folders=("imagenet",),
        held_out=("val", "test"),
        official_files="train/WNID/*.JPEG and val/WNID/*.JPEG",
        how_to_get=(
            "from https://image-net.org unpack ILSVRC2012_img_train.tar and its 1,000 inner archives into "
            "{data_path}/imagenet/train/WNID/, and sort ILSVRC2012_img_val.tar into {data_path}/imagenet/val/WNID/"
        ),
    ),
}  # fmt: skip
