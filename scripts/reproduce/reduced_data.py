"""Write a few made-up images in the format of a data set, for smoke runs. Usage: reduced_data.py DATASET FOLDER

The images are noise around one colour per class, of the real size, with labels of two classes. FOLDER appears only
when it is complete. A reduced imagenet is written as an image folder, since that name accepts only the whole set.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from autorep.data.cache import array_paths
from autorep.data.datasets import dataset_info

IMAGES_PER_CLASS = {"train": 6, "test": 2}
NUM_CLASSES = 2


def main(name: str, folder: Path) -> None:
    """Write the training and the test images of a data set."""
    info = dataset_info(name, folder)
    shape = (info.image_size, info.image_size, info.in_channels)
    rng = np.random.default_rng(0)
    colours = rng.integers(64, 192, (NUM_CLASSES, 1, 1, 1, info.in_channels))
    unfinished = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for split, count in IMAGES_PER_CLASS.items():
        noise = rng.integers(-64, 64, (NUM_CLASSES, count, *shape))
        images = (colours + noise).astype(np.uint8).reshape(-1, *shape)
        labels = np.repeat(np.arange(NUM_CLASSES), count)
        if info.streaming:
            _write_tree(unfinished / split, images, labels)
        else:
            for path, array in zip(array_paths(unfinished, name, split), (images, labels), strict=True):
                np.save(path, array)
    unfinished.rename(folder)


def _write_tree(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / f"class{label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
