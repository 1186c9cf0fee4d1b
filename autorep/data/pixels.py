"""The pixels of one image file in 8 bits, grey or RGB, whatever the file holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageMode
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from autorep.machine.files import of_system

_SIGNED = 2  # of TIFF's SampleFormat
COLOUR_MODES = {1: "L", 3: "RGB"}  # number of channels -> Pillow's name


def read_header(path: str) -> tuple[tuple[int, int], int]:
    """Width, height and channels (1 or 3) of an image. Raises as `decode_image`."""
    with _opened(path) as image:
        return image.size, 1 if ImageMode.getmode(image.mode).basemode == "L" else 3


def decode_image(path: str, channels: int) -> Image.Image:
    """The image as grey (1 channel) or RGB (3).

    Raises:
        ValueError: naming a file that is damaged, or whose numbers have no known meaning.
        OSError: it cannot be read, and may well be whole.
    """
    with _opened(path) as image:
        image.load()
        _refuse_signed(image)
        if image.mode.startswith(("I", "F")):  # convert() would cut off what it should scale
            image = Image.fromarray(_bytes_of_grey(image))
        if image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
            image = image.convert("RGBA")
        _refuse_hidden(image)
        try:
            return image.convert(COLOUR_MODES[channels])
        except ValueError as error:
            raise _NotUnderstood(f"{image.mode} pixels ({error}): save it as RGB or grey") from error


class _NotUnderstood(ValueError):
    """What a whole file holds, and nothing says how it looks."""


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except _NotUnderstood as error:
        raise ValueError(f"{path} holds {error}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large: {error}; make it smaller") from error
    except Exception as error:  # Pillow's decoders raise many unrelated types on damaged bytes
        if of_system(error):
            raise
        raise ValueError(f"{path} is damaged or not an image that Pillow reads ({error})") from error


def _refuse_signed(image: Image.Image) -> None:
    """Raises where grey is a whole number with a sign, which Pillow reads as one without in 8 bits."""
    # Pillow gives PNG and PGM of 16 bits as 32 bits, too.
    if (image.mode == "I" and image.format not in ("PNG", "PPM")) or _SIGNED in _tags(image).get(SAMPLEFORMAT, ()):
        raise _NotUnderstood("whole numbers with a sign or of 32 bits, whose white is unknown: save it with 8 or 16 "
                             "bits and no sign")


def _tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})  # only a TIFF has some


def _refuse_hidden(image: Image.Image) -> None:
    """Raises where a picture is drawn in the transparency of one colour: without it nothing is left."""
    if image.mode in ("LA", "RGBA"):
        *colours, (lowest, highest) = image.getextrema()
        if lowest < highest and all(low == high for low, high in colours):
            raise _NotUnderstood("its picture in the transparency alone: save it on a background")


def _bytes_of_grey(image: Image.Image) -> np.ndarray:
    """A grey image of up to 16 bits, or of floats from 0 to 1, as uint8 [H, W]."""
    values, tags = np.asarray(image), _tags(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):
            raise _NotUnderstood(f"floats from {values.min():g} to {values.max():g}: expected 0 (black) to 1 (white); "
                                 "scale it, or save it with 8 or 16 bits")
        scaled = (255 * values).round()
    else:
        bits = tags.get(BITSPERSAMPLE, (16,))[0]
        scaled = (values.astype(np.int64) >> (bits - 8)).clip(0, 255)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero; Pillow sees to that in 8 bits alone
        scaled = 255 - scaled
    return scaled.astype(np.uint8)
