"""A link with latency and bandwidth, without root: TCP proxies that delay traffic."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

from autorep.mpc.engines import Network
from autorep.mpc.parties.channel import Address

_CHUNK = 1 << 16
_QUEUED = 256  # most chunks under way per connection; beyond that, reading waits
Route = tuple[Address, Address, int, int]


@dataclass
class _Direction:
    """What one party sends, over all its connections. `busy_until`: when its last bit has left [s]."""

    network: Network
    busy_until: float = 0.0
    num_bytes: int = 0

    def departure(self, length: int) -> float:
        """When a chunk that is sent now arrives at the other end [s of the monotonic clock]."""
        self.busy_until = max(time.monotonic(), self.busy_until) + length * 8 / (self.network.mbit * 1e6)
        self.num_bytes += length
        return self.busy_until + self.network.delay_ms / 1e3


@dataclass
class ShapedLink:
    """The lines by which the parties reach each other: what a party sends shares its bandwidth, whoever gets it.

    Args:
        routes: (listen address, target address, rank of the party that dials, rank of the one that listens).

    Attributes:
        sent_by: rank -> the direction that carries what this party sends.
    """

    network: Network
    routes: list[Route]
    sent_by: dict[int, _Direction] = field(init=False)

    def __post_init__(self) -> None:
        self.sent_by = defaultdict(lambda: _Direction(self.network))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> ShapedLink:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> None:
        for here, there, *ranks in self.routes:
            directions = tuple(self.sent_by[rank] for rank in ranks)

            async def serve(reader, writer, there=there, directions=directions):
                await self._serve(reader, writer, there, directions)
            await asyncio.start_server(serve, *here)

    async def _stop(self) -> None:
        tasks = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, there: Address,
                     directions: tuple[_Direction, _Direction]) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*there)
        except OSError:
            writer.close()  # the dialling party retries
            return
        # The end of the link cancels this handler, which asyncio would otherwise report as an error.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(_carry(reader, far_writer, directions[0]), _carry(far_reader, writer, directions[1]),
                                 return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: _Direction) -> None:
    queue: asyncio.Queue = asyncio.Queue(_QUEUED)
    delivery = asyncio.ensure_future(_deliver(queue, writer))
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            await queue.put((direction.departure(len(chunk)), chunk))
    await queue.put((time.monotonic(), b""))
    await delivery


async def _deliver(queue: asyncio.Queue, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while True:
            due, chunk = await queue.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not chunk:
                break
            writer.write(chunk)
            await writer.drain()
    writer.close()
