"""TensorBoard's file, which may fail without taking the run along."""

from __future__ import annotations

import warnings
from pathlib import Path

from tensorboardX import SummaryWriter

_MANY = 1000  # of events in the queue: it fills long after its thread has died


class Board:
    """A SummaryWriter that stops where its file cannot be written, as on a full disk.

    A thread of tensorboardX writes the file. Without it every call would wait for room in a queue, and the end of the
    process too.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, max_queue=_MANY)
        self._folder, self._events = folder, self._writer.file_writer.event_writer

    def __getattr__(self, name: str):
        """`add_scalar` and its like; nothing happens once the file has failed."""
        return getattr(self._writer, name) if self._works() else lambda *args, **kwargs: None

    def close(self) -> None:
        """Flush and close the file."""
        try:
            if self._works():
                self._writer.close()
        except OSError as error:
            self._give_up_(str(error))

    def _works(self) -> bool:
        if not self._events._closed and not self._events._worker.is_alive():
            self._give_up_("its writer ended")
        return not self._events._closed

    def _give_up_(self, reason: str) -> None:
        self._events._closed = True
        self._events._event_queue.cancel_join_thread()
        warnings.warn(f"{self._folder} cannot be written ({reason}): this run goes on without TensorBoard",
                      stacklevel=4)
