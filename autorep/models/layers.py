"""What the CIFAR nets have in common."""

from __future__ import annotations

from torch import nn


def conv3x3(num_in: int, num_out: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution, padding 1, no bias: a batch norm follows."""
    return nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)


def dropout_or_identity(p: float) -> nn.Module:
    """Dropout, or the identity for p = 0, where dropout would take time and memory for nothing."""
    return nn.Dropout(p) if p > 0 else nn.Identity()


def init_convs_(model: nn.Module) -> None:
    """Kaiming normal, fan out, for every convolution (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
