"""Moments to coefficients: the Gaussian closed form, and exact least squares on what was recorded (paper section 3.3).

All in float64. C channels, D = degree + 1, coefficients constant first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import comb

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autorep.config import DapaConfig
from autorep.dapa.moments import Moments
from autorep.gates.gated_relu import GatedReLU
from autorep.gates.polynomial_sigmoid import Fitted, iter_fitted

Activation = Callable[[Tensor], Tensor]
_WIDTH, _NODES = 10.0, 4001  # of the quadrature, in standard deviations on either side

# Coefficients of the probabilists' Hermite polynomials He_0 ... He_4 in powers of u, constant first.
_HERMITE = ((1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (-1, 0, 1, 0, 0), (0, -3, 0, 1, 0), (3, 0, -6, 0, 1))


def gaussian_coefficients(mean: Tensor | float, std: Tensor | float, degree: int,
                          activation: Activation | None = None) -> Tensor:
    """The least-squares polynomial to an activation under x ~ N(mean, std^2), that to ReLU in closed form.

    It is an expansion in Hermite polynomials of u = (x - mean) / std with the coefficients E[f(x) He_k(u)] / k!. With
    z = mean / std those of ReLU are std (z Phi(z) + phi(z)), std Phi(z), and std phi(z) He_{k-2}(-z) / k! for k >= 2;
    for other activations `hermite_expansion` integrates.

    Args:
        mean: of the activations, any shape.
        std: their standard deviation (not the variance), broadcastable to mean, more than 0.
        degree: 0 to 4.
        activation: on [nodes, C] in float64, where mean is [C]; None is ReLU.

    Returns:
        float64 [..., degree + 1], constant first.

    Raises:
        ValueError: degree out of range, a mean that is not finite, or a standard deviation that is not positive.
    """
    if isinstance(degree, bool) or not isinstance(degree, int) or degree not in range(len(_HERMITE)):
        raise ValueError(f"invalid degree={degree!r}: expected a whole number from 0 to {len(_HERMITE) - 1}")
    mean = torch.as_tensor(mean, dtype=torch.float64)
    std = torch.as_tensor(std, dtype=torch.float64, device=mean.device)
    mean, std = torch.broadcast_tensors(mean, std)
    if not mean.isfinite().all():
        raise ValueError("invalid mean: expected finite numbers, but the recorded activations hold NaN or infinity; "
                         "check the inputs of the model")
    if not ((std > 0) & std.isfinite()).all():
        raise ValueError(f"invalid std from {std.min().item()} to {std.max().item()}: expected positive, finite "
                         "numbers; put a floor on it")
    expansion = _relu_expansion(mean, std) if activation is None else hermite_expansion(mean, std, activation)
    expansion = expansion[: degree + 1]
    in_u = [sum(a * _HERMITE[k][j] for k, a in enumerate(expansion)) for j in range(degree + 1)]
    return _powers_of_x(torch.stack(in_u, -1), mean, std)


def _relu_expansion(mean: Tensor, std: Tensor) -> list[Tensor]:
    z = mean / std
    phi, cdf = torch.exp(-z**2 / 2) / math.sqrt(2 * math.pi), torch.special.ndtr(z)
    return [std * a for a in (z * cdf + phi, cdf, phi / 2, -z * phi / 6, (z**2 - 1) * phi / 24)]


def hermite_expansion(mean_C: Tensor, std_C: Tensor, activation: Activation) -> list[Tensor]:
    """E[f(x) He_k(u)] / k! under x = mean + std u, u ~ N(0, 1), for k = 0 ... 4: [C] each, float64.

    By the trapezoidal rule, whose error falls faster than any power of the step where f is smooth; a kink adds about
    the step squared, 10^-6 of the standard deviation here.
    """
    u = torch.linspace(-_WIDTH, _WIDTH, _NODES, dtype=torch.float64, device=mean_C.device)
    weights = torch.exp(-u**2 / 2)
    weights = weights / weights.sum()
    f_UC = activation(mean_C + std_C * u[:, None]).double()
    basis = [sum(a * u**j for j, a in enumerate(row)) / math.factorial(k) for k, row in enumerate(_HERMITE)]
    return [(weights * column) @ f_UC for column in basis]


def recorded_coefficients(moments: Moments, degree: int) -> Tensor:
    """The least-squares polynomial to the activation on exactly the samples that were recorded (normal equations).

    Returns:
        float64 [C, degree + 1], constant first. Where the samples do not determine it, the smallest solution.

    Raises:
        ValueError: the moments were recorded for a lower degree, or saw nothing.
    """
    if degree > moments.degree:
        raise ValueError(f"invalid degree={degree}: expected at most {moments.degree}, for which these moments were "
                         f"recorded; use record_moments(model, degree={degree})")
    if not (moments.count > 0).all():
        raise ValueError("no activations were recorded; run the model inside the record_moments block")
    power = moments.power_sums / moments.count[:, None]
    index = torch.arange(degree + 1, device=power.device)
    gram = power[:, index[:, None] + index]
    target = moments.target_sums[:, : degree + 1] / moments.count[:, None]
    in_u = (torch.linalg.pinv(gram, rtol=1e-13, hermitian=True) @ target[..., None]).squeeze(-1)
    return _powers_of_x(in_u, moments.shift, moments.scale)


def fitted_coefficients(moments: Moments, degree: int, config: DapaConfig,
                        activation: Activation | None = None) -> Tensor:
    """[C, degree + 1] to an activation (None: ReLU) by `config.fit`, with the floor on the variance and the scales.

    `scale_x2` multiplies c2 (and higher ones), and c1 and c0 are the best ones for that: the polynomial goes from the
    linear fit (0) to the full fit (1), whose difference is orthogonal to linear functions.
    """
    coefficients = _least_squares(moments, degree, config, activation)
    if degree >= 2:
        linear = torch.zeros_like(coefficients)
        linear[:, :2] = _least_squares(moments, 1, config, activation)
        coefficients = linear + config.scale_x2 * (coefficients - linear)
        if config.clip_x2 is not None:
            coefficients[:, 2].clamp_(-config.clip_x2, config.clip_x2)
    if degree >= 1:
        coefficients[:, 1] *= config.scale_x1
    return coefficients


def _least_squares(moments: Moments, degree: int, config: DapaConfig, activation: Activation | None) -> Tensor:
    """A channel whose variance is below `var_min` hardly determines a polynomial: it gets the Gaussian form."""
    spread = (moments.var >= config.var_min)[:, None]
    if config.fit == "recorded" and spread.all():
        return recorded_coefficients(moments, degree)
    gaussian = gaussian_coefficients(moments.mean, moments.var.clamp_min(config.var_min).sqrt(), degree, activation)
    if config.fit == "gaussian":
        return gaussian
    return torch.where(spread, recorded_coefficients(moments, degree), gaussian)


@torch.no_grad()
def fit_coefficients_(model: nn.Module, moments: dict[str, Moments], config: DapaConfig) -> None:
    """Set the coefficients of every gate and polynomial sigmoid from its recorded moments, best on the CPU (`on_cpu`).

    The scales of `config` are those of gates: nothing grows along a residual stream of sigmoids, so theirs are 1.

    Raises:
        ValueError: one of them was not recorded; then no coefficient has changed.
    """
    gates = dict(iter_fitted(model))
    missing = sorted(set(gates) - set(moments))
    if missing or not gates:
        raise ValueError(f"nothing was recorded for {', '.join(missing) or 'this model'}; "
                         "run the model inside `with record_moments(model)` first")
    unscaled = replace(config, scale_x1=1.0, scale_x2=1.0, clip_x2=None)
    fitted = {name: fitted_coefficients(moments[name], gate.degree, config if isinstance(gate, GatedReLU) else unscaled,
                                        activation_of(gate)) for name, gate in gates.items()}
    for name, gate in gates.items():
        gate.coefficients.copy_(fitted[name], non_blocking=True)


def activation_of(gate: Fitted) -> Activation | None:
    """What these polynomials are fitted to, on nodes [U, C] in float64; None is ReLU."""
    if gate.original is None:
        return None

    def activation(x_UC: Tensor) -> Tensor:
        dtype = next((tensor.dtype for tensor in _tensors_of(gate.original)), torch.float64)  # PReLU takes no other
        shape = (*x_UC.shape, *[1] * (gate.mask.dim() - 1))
        return gate.original(x_UC.to(gate.mask.device, dtype).view(shape)).view(x_UC.shape).to(x_UC)

    return activation


def _tensors_of(activation: Activation) -> Iterator[Tensor]:
    """The parameters of an activation: of a module, of its forward, or given to a function."""
    held = getattr(activation, "__self__", activation)
    if isinstance(held, nn.Module):
        return held.parameters()
    given = held.args if isinstance(held, partial) else ()
    return (leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor))


def _powers_of_x(in_u: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Coefficients of p(u), u = (x - shift) / scale, as coefficients in x (binomial theorem)."""
    degree = in_u.shape[-1] - 1
    columns = []
    for k in range(degree + 1):
        columns.append(sum(in_u[..., j] * comb(j, k) * (-shift) ** (j - k) / scale**j for j in range(k, degree + 1)))
    return torch.stack(columns, -1)
