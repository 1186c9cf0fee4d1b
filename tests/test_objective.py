"""Losses: hand arithmetic, a frozen teacher, parts that add up."""

import torch
import torch.nn.functional as F
from torch import nn

from autorep.data.batch import Batch
from autorep.training.objective import CrossEntropy, Distillation, distillation_loss


def test_distillation_equals_the_definition():
    student = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 2.0]])
    teacher = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    p, q = F.softmax(teacher / 4, -1), F.softmax(student / 4, -1)
    by_hand = 16 * (p * (p / q).log()).sum() / 2
    torch.testing.assert_close(distillation_loss(student, teacher, 4.0), by_hand)
    assert distillation_loss(teacher, teacher, 4.0).abs() < 1e-6


def test_the_gradient_does_not_shrink_with_the_temperature():
    teacher = torch.tensor([[0.3, -0.2, 0.1]])
    norms = []
    for temperature in (4.0, 40.0):
        student = torch.zeros(1, 3, requires_grad=True)
        distillation_loss(student, teacher, temperature).backward()
        norms.append(student.grad.norm())
    torch.testing.assert_close(norms[0], norms[1], rtol=0.1, atol=0.0)


def test_teacher_stays_frozen_in_eval_and_unchanged():
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    objective = Distillation(teacher, 4.0)
    batch = Batch(torch.randn(8, 1, 2, 2), torch.randint(0, 3, (8,)))
    logits = torch.randn(8, 3, requires_grad=True)
    parts = objective(logits, batch)
    torch.testing.assert_close(parts["loss"], parts["ce"] + parts["kd"])
    parts["loss"].backward()
    assert not teacher.training and all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert torch.equal(objective(logits, batch)["kd"], parts["kd"])  # no dropout in the teacher


def test_cross_entropy_returns_its_part():
    logits, labels = torch.randn(5, 3), torch.randint(0, 3, (5,))
    parts = CrossEntropy()(logits, Batch(torch.empty(0), labels))
    assert set(parts) == {"loss", "ce"}
    torch.testing.assert_close(parts["ce"], F.cross_entropy(logits, labels))
