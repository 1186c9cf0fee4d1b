"""Wide ResNets (Zagoruyko and Komodakis 2016), pre-activation; every ReLU is a distinct, named module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autorep.models.layers import conv3x3, dropout_or_identity, init_convs_


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each convolution; where the shape changes, the shortcut is a 1x1 convolution."""

    def __init__(self, num_in: int, num_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_in)
        self.relu1 = nn.ReLU()
        self.conv1 = conv3x3(num_in, num_out, stride)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.relu2 = nn.ReLU()
        self.dropout = dropout_or_identity(dropout)
        self.conv2 = conv3x3(num_out, num_out)
        changes = stride != 1 or num_in != num_out
        self.shortcut = nn.Conv2d(num_in, num_out, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        y = self.relu2(self.bn2(self.conv1(activated)))
        y = self.conv2(self.dropout(y))
        return y + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """WRN-`depth`-`width` with a batch norm but no ReLU after the last group: [N, C, H, W] -> logits [N, K].

    Raises:
        ValueError: a depth that is not 6 n + 4.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10, in_channels: int = 3,
                 dropout: float = 0.0) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"invalid depth={depth!r}: expected 6 n + 4 layers: 10, 16, 22, 28, ...")
        blocks_per_group = (depth - 4) // 6
        self.conv1 = conv3x3(in_channels, 16)
        blocks, num_in = [], 16
        for group, num_out in enumerate((16 * width, 32 * width, 64 * width)):
            for i in range(blocks_per_group):
                stride = 2 if group > 0 and i == 0 else 1
                blocks.append(PreActivationBlock(num_in, num_out, stride, dropout))
                num_in = num_out
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(num_in)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(num_in, num_classes)
        init_convs_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.bn(self.blocks(self.conv1(x))))
        return self.fc(torch.flatten(x, 1))
