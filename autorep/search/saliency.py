"""What the loss pays for each ReLU that becomes a polynomial, and scores that start from it. N batch, C channels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autorep.convert.swap import require_gates
from autorep.data.batch import Batch
from autorep.gates.gated_relu import GatedReLU, input_of, iter_gates
from autorep.gates.polynomial import evaluate
from autorep.machine.distributed import all_reduce_sum
from autorep.models.untouched import evaluating

# As many as a fit of the coefficients takes by default.
NUM_BATCHES = 10
# Beside the activations every gate's change is held until it is used: more memory than a step of training takes.
_IMAGES_AT_ONCE = 32


@contextmanager
def _changes(gates: dict[str, GatedReLU],
             candidates: dict[str, Tensor]) -> Iterator[dict[str, tuple[list[Tensor], Tensor]]]:
    """Filled by every forward pass within the block: gate -> (p(x) - act(x) of every candidate, its output)."""
    found: dict[str, tuple[list[Tensor], Tensor]] = {}
    deltas: dict[str, list[Tensor]] = {}

    def before(name: str, gate: GatedReLU, args: tuple, kwargs: dict) -> None:  # an inplace gate overwrites its input
        x = input_of(args, kwargs).detach()
        deltas[name] = [evaluate(x, coefficients) - gate.activate(x) for coefficients in candidates[name]]

    def after(name: str, _gate: GatedReLU, _args: tuple[Tensor], y: Tensor) -> None:
        found[name] = deltas.pop(name), y

    handles = [handle for name, gate in gates.items()
               for handle in (gate.register_forward_pre_hook(partial(before, name), with_kwargs=True),
                              gate.register_forward_hook(partial(after, name)))]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code does not see hooks that come later
            yield found
    finally:
        for handle in handles:
            handle.remove()


def saliency(model: nn.Module, batches: Iterable[Sequence[Tensor]]) -> dict[str, Tensor]:
    """`candidate_saliency` of the gates' own polynomials: qualified gate name -> float64 [C, ...]."""
    own = {name: gate.coefficients.detach()[None] for name, gate in iter_gates(model)}
    return {name: found[0] for name, found in candidate_saliency(model, batches, own).items()}


def candidate_saliency(model: nn.Module, batches: Iterable[Sequence[Tensor]],
                       candidates: dict[str, Tensor]) -> dict[str, Tensor]:
    """By how much the loss [nats] rises if the ReLU of a pixel becomes a polynomial, estimated from one gradient.

    The second-order term of the Taylor expansion of the cross entropy, mean((g delta)^2) / 2 over the images: optimal
    brain damage (LeCun et al. 1990) with the empirical Fisher information as curvature (Theis et al. 2018, Molchanov et
    al. 2019). The first-order term, mean(g delta), is nearly noise where training has ended, and it is what moves a
    score, times -softplus(score): the search brings it in anyway.

    An image whose activations overshoot, so that its loss or a gradient is not finite, is left out.

    Args:
        model: with gates whose scores require gradients; runs in evaluation mode and is left as it was.
        batches: this rank's (images [N, C, H, W], labels [N], ...) on the model's device; what follows is not used.
        candidates: qualified gate name -> coefficients [K, C, D] of K polynomials that are compared.

    Returns:
        Qualified gate name -> float64 [K, C, ...], over the images of all ranks and the same bits on each.

    Raises:
        ValueError: no image is left.
    """
    require_gates(model)
    gates = dict(iter_gates(model))
    device = next(iter(gates.values())).mask.device
    totals = {name: torch.zeros((len(candidates[name]), *gate.mask.shape), dtype=torch.float64, device=device)
              for name, gate in gates.items()}
    num_images = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model), _changes(gates, candidates) as changes:
        for batch in map(Batch.of, batches):
            parts = zip(batch.images.split(_IMAGES_AT_ONCE), batch.labels.split(_IMAGES_AT_ONCE), strict=True)
            for few, their_labels in parts:
                loss_N = F.cross_entropy(model(few), their_labels, reduction="none")
                finite_N = loss_N.isfinite() & _square_(changes, loss_N)
                for name, (squares, _) in changes.items():
                    for total, square in zip(totals[name], squares, strict=True):
                        total += square[finite_N].sum(0, dtype=torch.float64)
                num_images += finite_N.sum()
    num = all_reduce_sum(num_images)
    if not num:
        raise ValueError("invalid model: expected a finite loss with finite gradients on some images, found none; its "
                         "activations overshoot: start from other weights, or fit with a smaller --scale_x2")
    return {name: all_reduce_sum(total) / (2 * num) for name, total in totals.items()}


def _square_(changes: dict[str, tuple[list[Tensor], Tensor]], loss_N: Tensor) -> Tensor:
    """Turn every change into (g change)^2; returns the images on which all of them are finite, bool [N]."""
    # Of the sum and no mean: then the gradient at an image is that of its own loss.
    gradients = torch.autograd.grad(loss_N.sum(), [y for _, y in changes.values()])
    finite_N = torch.ones_like(loss_N, dtype=torch.bool)
    for (deltas, _), grad_y in zip(changes.values(), gradients, strict=True):
        for delta in deltas:
            finite_N &= delta.mul_(grad_y).square_().flatten(1).isfinite().all(1)
    return finite_N


@torch.no_grad()
def init_scores_(model: nn.Module, batches: Iterable[Sequence[Tensor]]) -> None:
    """Set the scores of all gates to the ranks of their saliency, evenly spread from score_init_low to score_init_high.

    Random scores have the same distribution, so learning rates, penalty and threshold mean the same. The first
    ten of `batches` are used (as in `saliency`); they must hold all classes, so they come from a shuffled loader.

    Raises:
        ValueError: no image has a finite loss with finite gradients.
    """
    with torch.enable_grad():
        values = torch.cat([value.flatten() for value in saliency(model, islice(batches, NUM_BATCHES)).values()])
    rank = torch.empty_like(values)
    # Stable: equal ones in the order of the network, on every machine and rank alike.
    rank[torch.sort(values, stable=True).indices] = torch.arange(len(values), dtype=values.dtype, device=values.device)
    gates = [gate for _, gate in iter_gates(model)]
    for gate, part in zip(gates, ((rank + 0.5) / len(rank)).split([g.num_total for g in gates]), strict=True):
        low, high = gate.config.score_init_low, gate.config.score_init_high
        gate.score.copy_((low + (high - low) * part).view_as(gate.score))
