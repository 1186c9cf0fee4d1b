"""The layer: a score parameter, a mask buffer, polynomial coefficients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from autorep.config import GateConfig
from autorep.gates.hysteresis import next_mask, straight_through
from autorep.gates.kernels import gated_relu
from autorep.gates.layout import in_layout_of, mask_in_order_of
from autorep.gates.polynomial import evaluate
from autorep.gates.reference import within

# torch.fx, and with it torchvision's feature extractor, traces through a gate: calls of these are nodes of its graph.
torch.fx.wrap("gated_relu")
torch.fx.wrap("_checked")


def _checked(x: Tensor, shape: torch.Size) -> Tensor:
    if x.shape[1:] != shape:
        raise ValueError(f"this gate expects activations [N, {', '.join(map(str, shape))}] and got {list(x.shape)}; "
                         "masks are per pixel, so convert with an example of this resolution")
    return x


def input_of(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """What a module of one input was called with, by place or by name: for hooks."""
    return (*args, *kwargs.values())[0]


# No floating-point number has this value: an average of buffers rounds it, a copy does not.
_UNAVERAGED = 2**53 + 1
_SET_ASIDE = "set_aside."  # in a state dict: of the activation that the gate took the place of


class GatedReLU(nn.Module):
    """y = mask ? relu(x) : c_k x^k + ... + c_1 x + c_0, mask per pixel, coefficients per channel (paper section 3).

    A kept pixel computes ReLU, or with `config.kept` = "original" the activation that a conversion found there.

    Parameters `score` [C, ...] and `coefficients` [C, D], buffer `mask` bool [C, ...]. The mask changes only by
    `update_mask_`, never in `forward`. Dimension 1 of the input is the channel. An average of models has to copy masks,
    as torch.optim.swa_utils.AveragedModel does by default: bits that are averaged and rounded back to bits never fall.
    The buffer `unaveraged` shows whether that has happened.

    Args:
        shape: of one image's activations, [C, H, W] or [C].
        inplace: also write the result into the input, as an inplace ReLU that the model relies on would.
        original: the activation that the gate replaces; polynomials are fitted to it. None is ReLU.
        kind: its name.
        dtype: of scores and coefficients, float32 or float64.

    Raises:
        ValueError: at call time, the shape of the input is not [N, *shape].
        RuntimeError: as `require_own_mask`, also from `train`, `eval`, `state_dict` and `load_state_dict`.
    """

    def __init__(self, shape: tuple[int, ...], config: GateConfig, *, inplace: bool = False,
                 device: torch.device | str | None = None, dtype: torch.dtype = torch.float32,
                 original: Callable[[Tensor], Tensor] | None = None, kind: str = "ReLU") -> None:
        super().__init__()
        self.config = config
        self.inplace = inplace
        self.original = original
        self.kind = kind
        self.origin: Any = None  # what a conversion put the gate in the place of
        low, high = config.score_init_low, config.score_init_high
        score = low + (high - low) * torch.rand(shape, dtype=dtype)
        self.score = nn.Parameter(score.to(device))
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool, device=device))
        self.register_buffer("unaveraged", torch.tensor(_UNAVERAGED, device=device))
        # Lowest, highest and pull [3, C] of what the polynomials see in training mode.
        self.register_buffer("range_3C", None, persistent=False)
        coefficients = torch.zeros(shape[0], config.degree + 1, dtype=dtype, device=device)
        if config.degree >= 1:
            coefficients[:, 1] = 1
        self.coefficients = nn.Parameter(coefficients, requires_grad=config.replacement != "identity")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (models call activations with input=x)
        x = _checked(input, self.mask.shape)
        if self.inplace:
            return x.copy_(self._apply_gate(x.clone()))
        return self._apply_gate(x)

    def _apply_gate(self, x: Tensor) -> Tensor:
        range_3C = self.range_3C if self.training else None
        if not self.keeps_original:
            return gated_relu(x, self.mask, self.coefficients, self.score, range_3C)
        kept = self.activate(x)
        dropped = gated_relu(x, self.mask, self.coefficients, None, range_3C)
        y = in_layout_of(x, torch.where(mask_in_order_of(x, self.mask), kept, dropped))
        if not (torch.is_grad_enabled() and self.score.requires_grad):
            return y
        change = (kept - evaluate(within(x, range_3C), self.coefficients)).detach()
        gate = self.gate()
        return y + ((gate - gate.detach()) * change).to(y.dtype)

    @property
    def keeps_original(self) -> bool:
        """Whether a kept pixel computes an activation that is not ReLU."""
        return self.original is not None and self.config.kept == "original"

    def activate(self, x: Tensor) -> Tensor:
        """What kept pixels compute of x."""
        return self.original(x.clone()) if self.keeps_original else x.relu()

    def gate(self) -> Tensor:
        """The mask as floats [C, ...], differentiable with respect to the score (straight-through)."""
        return straight_through(self.score, self.mask)

    @torch.no_grad()
    def update_mask_(self) -> Tensor:
        """One mask update; returns the number of ReLUs that were dropped or came back, an int64 tensor []."""
        new = next_mask(self.mask, self.score, self.config.threshold)
        flips = (new != self.mask).sum()
        self.mask.copy_(new)
        return flips

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GatedReLU:
        """What `.to()` and its like call: the activation that was set aside has to follow."""
        if self.set_aside is not None:
            self.set_aside._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @property
    def set_aside(self) -> nn.Module | None:
        """The activation that the gate took the place of; it is no submodule, but its parameters are saved too."""
        return None if self.origin is None else self.origin.replaced

    def require_own_mask(self) -> None:
        """Raises RuntimeError where the mask is an average of masks, which keeps more ReLUs than each of them."""
        if not self.unaveraged.is_meta and int(self.unaveraged) != _UNAVERAGED:
            raise RuntimeError("the masks of this model are averages, which keep more ReLUs than each of the models: "
                               "copy those of one, as AveragedModel(..., use_buffers=False) does")

    def train(self, mode: bool = True) -> GatedReLU:
        self.require_own_mask()
        if self.set_aside is not None:
            self.set_aside.train(mode)
        return super().train(mode)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.require_own_mask()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.set_aside is not None:
            self.set_aside.state_dict(destination=destination, prefix=f"{prefix}{_SET_ASIDE}", keep_vars=keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any],
                              strict: bool, missing_keys: list[str], unexpected_keys: list[str],
                              error_msgs: list[str]) -> None:
        if f"{prefix}mask" in state_dict:  # checkpoints of older versions do not have the other one
            state_dict.setdefault(f"{prefix}unaveraged", torch.tensor(_UNAVERAGED))
        unexpected: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected, error_msgs)
        place = f"{prefix}{_SET_ASIDE}"
        unexpected_keys += [name for name in unexpected if self.set_aside is None or not name.startswith(place)]
        kept = {name.removeprefix(place): value for name, value in state_dict.items() if name.startswith(place)}
        if kept and self.set_aside is not None:  # nor do they have these
            self.set_aside.load_state_dict(kept)
        self.require_own_mask()

    def freeze_(self) -> GatedReLU:
        """Stop the mask from moving: the score no longer trains."""
        self.score.requires_grad_(False)
        return self

    @property
    def frozen(self) -> bool:
        """Whether the mask no longer moves."""
        return not self.score.requires_grad

    @property
    def degree(self) -> int:
        """Of the polynomials."""
        return self.config.degree

    @property
    def num_kept(self) -> int:
        """Kept ReLUs per image."""
        return int(self.mask.sum())

    @property
    def num_total(self) -> int:
        """ReLUs per image before any was dropped."""
        return self.mask.numel()

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.mask.shape))
        inplace = ", inplace=True" if self.inplace else ""
        original = "" if self.original is None else f", original={self.kind}"
        return (f"{shape}, kept={self.num_kept}/{self.num_total}, replacement={self.config.replacement}, "
                f"degree={self.config.degree}, threshold={self.config.threshold}{inplace}{original}")


def iter_gates(model: nn.Module) -> Iterator[tuple[str, GatedReLU]]:
    """(qualified name, gate) for every gate of the model, in the order of `named_modules`."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, GatedReLU))
