"""Reads the tags of a TensorBoard folder with nothing but tensorboardX's own message types."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def read_tags(folder: Path) -> set[str]:
    """All tags in the event files of a folder. A record is its length, 4 bytes, the event, 4 bytes."""
    tags = set()
    for path in folder.glob("events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at: at + 8])
            event = Event.FromString(data[at + 12: at + 12 + length])
            tags |= {value.tag for value in event.summary.value}
            at += 12 + length + 4
    return tags
