"""CIFAR ResNets (He et al. 2016); every ReLU is a distinct, named module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autorep.models.layers import conv3x3, init_convs_


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes (option B)."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(num_in, num_out, stride)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(num_out, num_out)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or num_in != num_out:
            self.shortcut = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, one stage of basic blocks per width, average pool and `fc`: [N, C, H, W] -> logits [N, K].

    Args:
        blocks: number of blocks of each stage; every stage but the first halves the resolution.
        widths: channels of each stage; the stem has those of the first.
        stem_relu: whether a ReLU follows the stem. The `_in` nets, whose ReLU totals are published, have none.
    """

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], stem_relu: bool, num_classes: int = 10,
                 in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu1 = nn.ReLU() if stem_relu else nn.Identity()
        stages, num_in = [], widths[0]
        for i, (num_blocks, width) in enumerate(zip(blocks, widths, strict=True)):
            strides = [1 if i == 0 else 2] + [1] * (num_blocks - 1)
            inputs = [num_in] + [width] * (num_blocks - 1)
            stages.append(nn.Sequential(*(BasicBlock(n, width, s) for n, s in zip(inputs, strides, strict=True))))
            num_in = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        init_convs_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.pool(self.stages(x))
        return self.fc(torch.flatten(x, 1))
