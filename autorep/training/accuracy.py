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
    """Top-1 and top-5 accuracy [percent], mean cross entropy [nats] and how many images they are over."""

    top1: float
    top5: float
    loss: float
    num_images: int


@torch.no_grad()
def evaluate(model: nn.Module, loader, *, precision: str = "full") -> Accuracy:
    """Accuracy over every image of a loader, once each, over all ranks: that of the network of rank 0, which is saved.

    Top-5 is top-K where there are fewer than five classes. The model is left as it was.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=loader.device)
    with evaluating(model), buffers_of_main(model):
        for batch in map(Batch.of, loader.batches(0)):
            with autocast(loader.device, precision):
                logits = model(to_device(batch.images, loader.device))
            sums += _batch_sums(logits.float(), batch.labels)
    top1, top5, loss, num = all_reduce_sum(sums).tolist()
    return Accuracy(100 * top1 / num, 100 * top5 / num, loss / num, int(num))


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
    top = logits_NK.topk(min(5, logits_NK.shape[1]), dim=1).indices
    hits = top == labels_N[:, None]
    loss = nn.functional.cross_entropy(logits_NK, labels_N, reduction="sum")
    return torch.stack([hits[:, 0].sum(), hits.sum(), loss, hits.new_tensor(len(hits), dtype=torch.int64)]).double()
