"""Accuracy and logits of a network over a whole data set; the model is left as it was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autorep.data.batch import Batch
from autorep.machine.device import autocast, to_device
from autorep.machine.distributed import all_reduce_sum, buffers_of_main
from autorep.models.untouched import evaluating


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy [percent], mean cross entropy [nats] and how many images they are over.

    On `num_lost` of these images a quadratic has overshot until a logit was not finite: they count as wrong, and the
    cross entropy is the mean over the others.
    """

    top1: float
    top5: float
    loss: float
    num_images: int
    num_lost: int = 0

    def __str__(self) -> str:
        lost = f" ({self.num_lost:,} images have logits that are not finite)" if self.num_lost else ""
        return f"top-1 {self.top1:.2f} %{lost}"


@torch.no_grad()
def evaluate(model: nn.Module, loader, *, precision: str = "full") -> Accuracy:
    """Accuracy over every image of a loader, once each, over all ranks: that of the network of rank 0, which is saved.

    Top-5 is top-K where there are fewer than five classes. The model is left as it was.
    """
    sums = torch.zeros(5, dtype=torch.float64, device=loader.device)
    with evaluating(model), buffers_of_main(model):
        for batch in map(Batch.of, loader.batches(0)):
            with autocast(loader.device, precision):
                logits = model(to_device(batch.images, loader.device))
            sums += _batch_sums(logits.float(), batch.labels)
    top1, top5, loss, num, lost = all_reduce_sum(sums).tolist()
    return Accuracy(100 * top1 / num, 100 * top5 / num, loss / max(1, num - lost), int(num), int(lost))


@torch.no_grad()
def all_logits(model: nn.Module, loader, *, precision: str = "full") -> Tensor:
    """Logits float32 [num_images, K] of every image of an unaugmented loader, in its order, on every rank.

    Each rank computes its part of every batch. The model must be in eval mode.
    """
    found = None
    for index, batch in zip(loader.indices(0), map(Batch.of, loader.batches(0)), strict=True):
        with autocast(loader.device, precision):
            part = model(to_device(batch.images, loader.device)).float()
        if found is None:
            found = part.new_zeros(loader.num_images, part.shape[1])
        found[index.to(loader.device)] = part
    return all_reduce_sum(found)  # the rows of the other ranks are zeros


def _batch_sums(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    finite_N = logits_NK.isfinite().all(1)
    top = logits_NK.topk(min(5, logits_NK.shape[1]), dim=1).indices
    hits = (top == labels_N[:, None]) & finite_N[:, None]
    loss_N = nn.functional.cross_entropy(logits_NK, labels_N, reduction="none").where(finite_N, 0)
    return torch.stack([hits[:, 0].sum(), hits.sum(), loss_N.sum(dtype=torch.float64),
                        torch.full_like(labels_N.sum(), len(labels_N)), (~finite_N).sum()]).double()
