"""Save a library's trained network as a checkpoint for --teacher_path.

Usage: library_teacher.py ARCH DATASET DATA_PATH FILE [--random]
The library downloads its weights on first use. --random uses fresh weights instead, for smoke runs.
"""

import sys
from pathlib import Path

from autorep import build_model
from autorep.data.datasets import dataset_info
from autorep.runs import checkpoint


def main(arch: str, dataset: str, data_path: str, file: str, *options: str) -> None:
    """Write the dense weights under the key that --teacher_path and --pretrained_path read, "model"."""
    info = dataset_info(dataset, data_path)
    model = build_model(arch, info.num_classes, in_channels=info.in_channels, image_size=info.image_size,
                        pretrained="--random" not in options)
    checkpoint.save(Path(file), {"model": model.state_dict()})


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
