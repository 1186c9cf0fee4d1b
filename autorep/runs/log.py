"""Metrics of a run: metrics.jsonl, TensorBoard, progress."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from autorep.gates.gated_relu import iter_gates
from autorep.machine.files import finite, naming, write_atomically
from autorep.runs.board import Board
from autorep.runs.folder import RunFolder


class RunLog:
    """Metrics of one run: metrics.jsonl, TensorBoard, progress. With `folder` None (other ranks) it does nothing.

    Args:
        folder: the run folder; made if missing.
        start_step: the step that the run resumes at; later rows, written by a killed attempt, are removed.
        num_steps: of the whole run, for the progress bar.
    """

    def __init__(self, folder: RunFolder | None, start_step: int, num_steps: int) -> None:
        self.folder = folder
        if folder is None:
            return
        folder.path.mkdir(parents=True, exist_ok=True)
        _keep_rows_until(folder, start_step)
        self._metrics = folder.metrics.open("a")
        self._board = Board(folder.tensorboard, purge_step=start_step + 1 if start_step else None)
        self._bar = tqdm(total=num_steps, initial=start_step, unit="step", dynamic_ncols=True,
                         disable=sys.stderr is None or not sys.stderr.isatty())

    def scalars(self, step: int, values: dict[str, float | str]) -> None:
        """One row of metrics.jsonl, null where a number is not finite, and the same numbers in TensorBoard."""
        if self.folder is None:
            return
        with naming(self.folder.metrics):
            self._metrics.write(json.dumps({"step": step, **finite(values)}) + "\n")
            self._metrics.flush()
        self.board(step, {k: v for k, v in values.items() if not isinstance(v, str)})

    def board(self, step: int, values: dict[str, float]) -> None:
        """Values for TensorBoard alone."""
        if self.folder is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def gates(self, step: int, model: nn.Module) -> None:
        """TensorBoard: ReLUs and mean coefficients of every layer, and a picture of its mask, one tile a channel."""
        if self.folder is None:
            return
        from torchvision.utils import make_grid  # here, because it takes seconds

        for name, gate in iter_gates(model):
            self._board.add_scalar(f"relus/{name}", gate.num_kept, step)
            for k, value in enumerate(gate.coefficients.detach().mean(0).tolist()):
                self._board.add_scalar(f"coefficients/{name}/c{k}", value, step)
            if gate.mask.dim() == 3:
                tiles = make_grid(gate.mask[:64, None].float().cpu(), nrow=8, padding=1, pad_value=0.5)
                self._board.add_image(f"masks/{name}", tiles.numpy(), step)

    def progress(self, step: int, line: str) -> None:
        """Progress: a bar on a terminal, one plain line otherwise."""
        if self.folder is None:
            return
        if self._bar.disable:
            print(line, flush=True)
        else:
            self._bar.n = step
            self._bar.set_postfix_str(line, refresh=True)

    def close(self) -> None:
        """Flush and close every file."""
        if self.folder is not None:
            self._board.close()
            self._bar.close()
            with naming(self.folder.metrics):
                self._metrics.close()


def score_quantiles(model: nn.Module) -> dict[str, float]:
    """Quantiles of the scores of all gates, as metrics: "score/q05" ... "score/q95"."""
    score = torch.cat([gate.score.detach().flatten() for _, gate in iter_gates(model)]).cpu().numpy()
    percents = (5, 25, 50, 75, 95)
    return {f"score/q{p:02d}": float(q) for p, q in zip(percents, np.percentile(score, percents), strict=True)}


class Interval:
    """Means of the loss parts, flips and throughput between two log lines; sums stay on the device, without waiting."""

    def __init__(self, device: torch.device) -> None:
        self.sums: dict[str, Tensor] = {}
        self.flips = torch.zeros((), dtype=torch.int64, device=device)
        self.num_steps, self.num_images, self.started = 0, 0, time.monotonic()

    def add(self, parts: dict[str, Tensor], flips: Tensor | None, num_images: int) -> None:
        """Add one step."""
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0) + value
        if flips is not None:
            self.flips += flips
        self.num_steps, self.num_images = self.num_steps + 1, self.num_images + num_images

    def means(self) -> dict[str, float]:
        """The mean of every part, and the flips in all."""
        return {**{name: (total / self.num_steps).item() for name, total in self.sums.items()},
                "flips": self.flips.item()}

    def images_per_second(self) -> float:
        """Training images per second, over all ranks."""
        return self.num_images / (time.monotonic() - self.started)


def _keep_rows_until(folder: RunFolder, step: int) -> None:
    """Drop the rows after `step`, and damaged ones."""
    if folder.metrics.exists():
        rows = [row for row in folder.read_metrics() if row["step"] <= step]
        write_atomically(folder.metrics, "".join(json.dumps(row) + "\n" for row in rows))
