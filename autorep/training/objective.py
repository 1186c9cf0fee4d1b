"""Losses as objects that return a dict of their parts. N batch, K classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autorep.data.batch import Batch


def distillation_loss(logits_NK: Tensor, teacher_logits_NK: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softened distributions, mean over the batch (Hinton et al. 2015, section 2)."""
    log_student = F.log_softmax(logits_NK / temperature, -1)
    log_teacher = F.log_softmax(teacher_logits_NK / temperature, -1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


class CrossEntropy:
    """Cross entropy alone, with smoothed labels (Szegedy et al. 2016, section 7): {"loss", "ce"}."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, logits_NK: Tensor, batch: Batch) -> dict[str, Tensor]:
        ce = F.cross_entropy(logits_NK.float(), batch.labels, label_smoothing=self.label_smoothing)
        return {"loss": ce, "ce": ce}


class Distillation:
    """Cross entropy plus distillation from a dense teacher: {"loss", "ce", "kd"}.

    The teacher is frozen, stays in eval mode and runs without gradients; not at all where the batch holds its logits.
    """

    def __init__(self, teacher: nn.Module, temperature: float) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature = temperature

    def __call__(self, logits_NK: Tensor, batch: Batch) -> dict[str, Tensor]:
        teacher_logits_NK = batch.teacher_logits
        if teacher_logits_NK is None:
            with torch.no_grad():
                teacher_logits_NK = self.teacher(batch.images)
        ce = F.cross_entropy(logits_NK.float(), batch.labels)
        kd = distillation_loss(logits_NK.float(), teacher_logits_NK.float(), self.temperature)
        return {"loss": ce + kd, "ce": ce, "kd": kd}
