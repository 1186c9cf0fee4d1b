"""VGG-16 with batch norm for small images (Simonyan and Zisserman 2015); every ReLU is a distinct, named module."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from autorep.models.layers import conv3x3, dropout_or_identity, init_convs_

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Thirteen 3x3 convolutions, average pool, dropout and `fc`: [N, C, H, W] -> logits [N, K]."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        layers, num_in = OrderedDict(), in_channels
        for s, widths in enumerate(_STAGES, start=1):
            for i, width in enumerate(widths, start=1):
                layers[f"conv{s}_{i}"] = conv3x3(num_in, width)
                layers[f"bn{s}_{i}"] = nn.BatchNorm2d(width)
                layers[f"relu{s}_{i}"] = nn.ReLU()
                num_in = width
            # ceil_mode: five halvings of 28 would leave no pixel.
            layers[f"pool{s}"] = nn.MaxPool2d(2, ceil_mode=True)
        self.features = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = dropout_or_identity(dropout)
        self.fc = nn.Linear(num_in, num_classes)
        init_convs_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.pool(self.features(x)), 1)
        return self.fc(self.dropout(x))
