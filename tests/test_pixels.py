"""The pixels of image files of every kind: right, or refused with a reason; a whole file is never called damaged."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from autorep.data.pixels import decode_image, read_header

GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)


def write_tiff(path, bits, white, data, kind=1, order="<") -> None:
    """A grey TIFF without compression: `white` 1 where zero is black, `kind` 1 unsigned, 2 signed, 3 float."""
    tags = [(256, 16), (257, 16), (258, bits), (259, 1), (262, white), (273, 8), (277, 1), (278, 16), (279, len(data)),
            (339, kind)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))


def packed_12(values) -> bytes:
    """Two pixels of 12 bits in three bytes."""
    a, b = values.ravel()[::2], values.ravel()[1::2]
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=1).astype(np.uint8).tobytes()


WIDE = GREYS.astype(np.uint32)
TIFFS = {"12 bits": (12, 1, packed_12(WIDE * 4095 // 255)), "16 bits": (16, 1, (WIDE * 257).astype("<u2").tobytes()),
         "16 bits, white is zero": (16, 0, (65535 - WIDE * 257).astype("<u2").tobytes()),
         "8 bits, white is zero": (8, 0, (255 - GREYS).tobytes()),
         "floats, white is zero": (32, 0, (1 - WIDE / 255).astype("<f4").tobytes(), 3),
         "16 bits, big-endian": (16, 1, (WIDE * 257).astype(">u2").tobytes(), 1, ">")}


@pytest.mark.parametrize("kind", TIFFS)
def test_a_grey_tiff_of_any_depth_has_its_values(tmp_path, kind):
    write_tiff(tmp_path / "a.tif", *TIFFS[kind])
    assert read_header(tmp_path / "a.tif") == ((16, 16), 1)
    assert np.array_equal(decode_image(tmp_path / "a.tif", 1), GREYS)
    assert np.array_equal(decode_image(tmp_path / "a.tif", 3), np.stack([GREYS] * 3, axis=-1))


def test_a_pgm_of_12_bits_is_scaled_to_its_own_white(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 4095\n" + (WIDE * 4095 // 255).astype(">u2").tobytes())
    assert np.array_equal(decode_image(tmp_path / "a.pgm", 1), GREYS)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_has_one_channel_whatever_its_mode(tmp_path, mode):
    values = Image.fromarray((WIDE * 257).astype(np.uint16)) if mode == "I;16" else Image.fromarray(GREYS).convert(mode)
    values.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == mode and read_header(tmp_path / "a.png") == ((16, 16), 1)
    assert np.array_equal(decode_image(tmp_path / "a.png", 1), GREYS)


def glyph(path) -> None:
    Image.fromarray(np.stack([0 * GREYS] * 3 + [GREYS], axis=-1)).save(path)


def glyph_in_a_palette(path) -> None:
    glyph(path)
    Image.open(path).quantize(256, method=Image.Quantize.FASTOCTREE).save(path, format="PNG")


def test_transparency_in_a_palette_changes_no_colour(tmp_path):
    colours = Image.fromarray(np.stack([GREYS, GREYS.T, GREYS // 2], axis=-1)).quantize(16)
    colours.save(tmp_path / "a.png", transparency=3)
    assert np.array_equal(decode_image(tmp_path / "a.png", 3), colours.convert("RGB"))


@pytest.mark.parametrize(("write", "reason"), [
    (glyph_in_a_palette, r"a.tif holds its picture in the transparency alone"),
    (glyph, r"a.tif holds its picture in the transparency alone: save it on a background"),
    (lambda path: Image.new("LAB", (16, 16)).save(path), r"a.tif holds LAB pixels .* RGB"),
    (lambda path: write_tiff(path, 16, 1, GREYS.astype("<i2").tobytes(), 2), "a.tif holds whole numbers with a sign"),
    (lambda path: write_tiff(path, 8, 1, GREYS.tobytes(), 2), "a.tif holds whole numbers with a sign"),
    (lambda path: path.write_bytes(b"P6 40000 40000 255\n"), r"a.tif is too large: .*; make it smaller"),
    (lambda path: path.write_text("<html>404"), r"a.tif is damaged or not an image"),
])
def test_what_has_no_known_pixels_is_refused(tmp_path, write, reason):
    write(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=reason):
        decode_image(tmp_path / "a.tif", 1)


def test_a_file_that_the_system_does_not_give_is_not_called_damaged(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a.png"):
        decode_image(tmp_path / "a.png", 3)
