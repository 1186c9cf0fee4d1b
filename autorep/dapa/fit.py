"""Moments to coefficients: the Gaussian closed form, and exact least squares on what was recorded (paper section 3.3).

All in float64. C channels, D = degree + 1, coefficients constant first.
"""

from __future__ import annotations

import math
from math import comb

import torch
from torch import Tensor, nn

from autorep.config import DapaConfig
from autorep.dapa.moments import Moments
from autorep.gates.gated_relu import iter_gates

# Coefficients of the probabilists' Hermite polynomials He_0 ... He_4 in powers of u, constant first.
_HERMITE = ((1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (-1, 0, 1, 0, 0), (0, -3, 0, 1, 0), (3, 0, -6, 0, 1))


def gaussian_coefficients(mean: Tensor | float, std: Tensor | float, degree: int) -> Tensor:
    """The least-squares polynomial to ReLU under x ~ N(mean, std^2), in closed form.

    With z = mean / std the expansion of ReLU in Hermite polynomials of u = (x - mean) / std has the coefficients
    std (z Phi(z) + phi(z)), std Phi(z), and std phi(z) He_{k-2}(-z) / k! for k >= 2.

    Args:
        mean: of the activations, any shape.
        std: their standard deviation (not the variance), broadcastable to mean, more than 0.
        degree: 0 to 4.

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
    z = mean / std
    phi, cdf = torch.exp(-z**2 / 2) / math.sqrt(2 * math.pi), torch.special.ndtr(z)
    expansion = [z * cdf + phi, cdf, phi / 2, -z * phi / 6, (z**2 - 1) * phi / 24][: degree + 1]
    in_u = [std * sum(a * _HERMITE[k][j] for k, a in enumerate(expansion)) for j in range(degree + 1)]
    return _powers_of_x(torch.stack(in_u, -1), mean, std)


def recorded_coefficients(moments: Moments, degree: int) -> Tensor:
    """The least-squares polynomial to ReLU on exactly the samples that were recorded (normal equations).

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


def fitted_coefficients(moments: Moments, degree: int, config: DapaConfig) -> Tensor:
    """[C, degree + 1] by `config.fit`, with the floor on the variance and the scales.

    `scale_x2` multiplies c2 (and higher ones), and c1 and c0 are the best ones for that: the polynomial goes from the
    linear fit (0) to the full fit (1), whose difference is orthogonal to linear functions.
    """
    coefficients = _least_squares(moments, degree, config)
    if degree >= 2:
        linear = torch.zeros_like(coefficients)
        linear[:, :2] = _least_squares(moments, 1, config)
        coefficients = linear + config.scale_x2 * (coefficients - linear)
        if config.clip_x2 is not None:
            coefficients[:, 2].clamp_(-config.clip_x2, config.clip_x2)
    if degree >= 1:
        coefficients[:, 1] *= config.scale_x1
    return coefficients


def _least_squares(moments: Moments, degree: int, config: DapaConfig) -> Tensor:
    """A channel whose variance is below `var_min` hardly determines a polynomial: it gets the Gaussian form."""
    gaussian = gaussian_coefficients(moments.mean, moments.var.clamp_min(config.var_min).sqrt(), degree)
    if config.fit == "gaussian":
        return gaussian
    spread = (moments.var >= config.var_min)[:, None]
    return torch.where(spread, recorded_coefficients(moments, degree), gaussian)


@torch.no_grad()
def fit_coefficients_(model: nn.Module, moments: dict[str, Moments], config: DapaConfig) -> None:
    """Set the coefficients of every gate from its recorded moments, which are best on the CPU (`on_cpu`).

    Raises:
        ValueError: a gate was not recorded; then no coefficient has changed.
    """
    gates = dict(iter_gates(model))
    missing = sorted(set(gates) - set(moments))
    if missing or not gates:
        raise ValueError(f"nothing was recorded for {', '.join(missing) or 'this model'}; "
                         "run the model inside `with record_moments(model)` first")
    fitted = {name: fitted_coefficients(moments[name], gate.config.degree, config) for name, gate in gates.items()}
    for name, gate in gates.items():
        gate.coefficients.copy_(fitted[name], non_blocking=True)


def _powers_of_x(in_u: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Coefficients of p(u), u = (x - shift) / scale, as coefficients in x (binomial theorem)."""
    degree = in_u.shape[-1] - 1
    columns = []
    for k in range(degree + 1):
        columns.append(sum(in_u[..., j] * comb(j, k) * (-shift) ** (j - k) / scale**j for j in range(k, degree + 1)))
    return torch.stack(columns, -1)
