"""Streaming moments of recorded activations: exact for whatever was seen, mergeable across batches and ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from math import comb

import torch
from torch import Tensor, nn

from autorep.gates.gated_relu import input_of
from autorep.gates.polynomial_sigmoid import PolynomialSigmoid, iter_fitted

# A batch is summed a few channels at a time: in float64 all of it would take several times a training step's memory.
_ELEMENTS_AT_ONCE = 2**23


@dataclass
class Moments:
    """Per-channel sums in float64 of u^k and f(x) u^k, where u = (x - shift) / scale and f the activation.

    The shift and scale are the mean and spread of the first batch: raw powers of x would lose all digits in a channel
    whose mean is large compared with its spread. D = degree + 1 of the polynomial that can be fitted.

    Attributes:
        shift, scale: [C].
        power_sums: [C, 2 D - 1], sums of u^0 ... u^(2 degree).
        target_sums: [C, D], sums of f(x) u^0 ... f(x) u^degree.
    """

    shift: Tensor
    scale: Tensor
    power_sums: Tensor
    target_sums: Tensor

    @classmethod
    def of(cls, x: Tensor, degree: int, like: Moments | None = None, target: Tensor | None = None) -> Moments:
        """The moments of one batch [N, C, ...], about its own centre or that of `like`, on the device of x.

        Args:
            target: f(x), in the shape of x; default: relu(x).
        """
        if x.dim() < 2 or x.numel() == 0:
            raise ValueError(f"invalid activations {list(x.shape)}: expected [N, C, ...] with at least one image")
        x_CN = x.detach().transpose(0, 1)
        size = max(1, _ELEMENTS_AT_ONCE * len(x_CN) // x.numel())
        centres = repeat(None) if like is None else zip(like.shift.split(size), like.scale.split(size), strict=True)
        targets = repeat(None) if target is None else target.detach().transpose(0, 1).split(size)
        parts = [_sums(few.flatten(1).to(torch.float64, copy=True), degree, centre, fs)
                 for few, centre, fs in zip(x_CN.split(size), centres, targets, strict=False)]
        shift, scale, powers, targets = (torch.cat(part) for part in zip(*parts, strict=True))
        return cls(shift, scale, powers, targets) if like is None else cls(like.shift, like.scale, powers, targets)

    @property
    def degree(self) -> int:
        """The highest degree that can be fitted."""
        return self.target_sums.shape[1] - 1

    @property
    def count(self) -> Tensor:
        """Samples per channel [C]."""
        return self.power_sums[:, 0]

    @property
    def mean(self) -> Tensor:
        """Mean of x per channel [C]."""
        return self.shift + self.scale * self._first

    @property
    def var(self) -> Tensor:
        """Variance of x per channel [C], over the count (the maximum-likelihood form)."""
        if self.degree == 0:
            raise ValueError("moments recorded for degree 0 hold no variance; record with degree 1 or more")
        return self.scale**2 * (self.power_sums[:, 2] / self.count - self._first**2).clamp_min(0)

    @property
    def _first(self) -> Tensor:
        if self.degree == 0:
            raise ValueError("moments recorded for degree 0 hold no mean; record with degree 1 or more")
        return self.power_sums[:, 1] / self.count

    def merge(self, other: Moments) -> Moments:
        """The moments of both sample sets together, about this one's centre (binomial shift of the other's sums)."""
        if self.power_sums.shape != other.power_sums.shape:
            raise ValueError(f"moments of {list(self.target_sums.shape)} and {list(other.target_sums.shape)} "
                             "[channels, degree + 1] cannot be merged")
        if other.shift is self.shift and other.scale is self.scale:  # batches of one recording
            return Moments(self.shift, self.scale, self.power_sums + other.power_sums,
                           self.target_sums + other.target_sums)
        a = other.scale / self.scale
        b = (other.shift - self.shift) / self.scale
        return Moments(self.shift, self.scale, self.power_sums + _moved(other.power_sums, a, b),
                       self.target_sums + _moved(other.target_sums, a, b))


def _sums(x_CM: Tensor, degree: int, centre: tuple[Tensor, Tensor] | None,
          target: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shift, scale, power sums and target sums of a few channels, about a centre (shift, scale) or their own."""
    if centre is None:
        spread = x_CM.std(1, correction=0)
        centre = x_CM.mean(1), torch.where(spread > 0, spread, 1.0)
    shift, scale = centre
    target_CM = x_CM.relu() if target is None else target.flatten(1).to(x_CM.dtype)
    u_CM = x_CM.sub_(shift[:, None]).div_(scale[:, None])
    powers, targets, power = [], [], torch.ones_like(u_CM)
    for k in range(2 * degree + 1):
        powers.append(power.sum(1))
        if k <= degree:
            targets.append((power * target_CM).sum(1))
        power *= u_CM
    return shift, scale, torch.stack(powers, 1), torch.stack(targets, 1)


def _moved(sums: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Sums of (a u + b)^k from sums of u^j."""
    columns = []
    for k in range(sums.shape[1]):
        columns.append(sum(comb(k, j) * a**j * b ** (k - j) * sums[:, j] for j in range(k + 1)))
    return torch.stack(columns, 1)


def on_cpu(moments: dict[str, Moments]) -> dict[str, Moments]:
    """The same moments on the CPU, where the thousands of small operations of a fit are faster; copied in one piece."""
    if not moments:
        return {}
    tensors = [tensor for found in moments.values() for tensor in vars(found).values()]
    together = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    pieces = iter(together.split([tensor.numel() for tensor in tensors]))
    return {name: Moments(*(next(pieces).view(tensor.shape) for tensor in vars(found).values()))
            for name, found in moments.items()}


@contextmanager
def record_moments(model: nn.Module, degree: int | None = None) -> Iterator[dict[str, Moments]]:
    """Record the input of every gate and polynomial sigmoid while the block runs; nothing in the model changes.

    The targets are those of the activation that was replaced. Sigmoids compute it meanwhile, because polynomials that
    are not fitted yet would spoil what the layers behind them see.

    Args:
        degree: highest degree to be fitted; each gate's own (at least 1) when None.

    Yields:
        A dict, filled during the block: qualified name -> `Moments`.

    Raises:
        ValueError: the model has no gates.
    """
    gates = dict(iter_fitted(model))
    if not gates:
        raise ValueError("this model has no gates to record; call convert_relus_ first")
    moments: dict[str, Moments] = {}

    def hook_for(name: str, gate_degree: int):
        def hook(gate, args, kwargs):
            x, seen = input_of(args, kwargs).detach(), moments.get(name)
            target = None if gate.original is None else gate.original(x.clone()).detach()
            batch = Moments.of(x, gate_degree, like=seen, target=target)
            moments[name] = batch if seen is None else seen.merge(batch)
        return hook

    handles = [gate.register_forward_pre_hook(hook_for(name, max(1, gate.degree if degree is None else degree)),
                                              with_kwargs=True) for name, gate in gates.items()]
    handles += [each.register_forward_hook(lambda sigmoid, args, kwargs, _: sigmoid.original(input_of(args, kwargs)),
                                           with_kwargs=True)
                for each in gates.values() if isinstance(each, PolynomialSigmoid)]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code does not see hooks that come later
            yield moments
    finally:
        for handle in handles:
            handle.remove()
