"""Accuracy of a trained network in which no activation is left, by what its polynomials are fitted to.

    python benchmarks/fit_targets.py --dataset cifar10 --data_path DATA

ResNet-8 is trained with SiLU, GELU or hard swish in the place of ReLU. Then every pixel becomes a quadratic (or a
linear function) at once, fitted to the activation that was there or to ReLU, and nothing is trained: test top-1 in
percent. The coefficients have their full scale and are fitted layer by layer, each to what it sees of the network in
which the layers before it are polynomials already.
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import nn

from autorep import GateConfig, build_model, convert_relus_, iter_gates
from autorep.config import DapaConfig
from autorep.dapa.calibrate import record
from autorep.dapa.fit import fitted_coefficients
from autorep.data.loader import make_loaders
from autorep.training.accuracy import evaluate

ACTIVATIONS = {"SiLU": nn.SiLU, "GELU": nn.GELU, "hard swish": nn.Hardswish}


def with_activation(model: nn.Module, activation: type[nn.Module]) -> nn.Module:
    """The model with this activation in the place of every ReLU."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, activation())
    return model


def train_(model: nn.Module, loader, epochs: int) -> None:
    """SGD with a one-cycle learning rate."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    num_steps = epochs * sum(1 for _ in loader.batches(0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, num_steps)
    model.train()
    for epoch in range(epochs):
        for images, labels, *_ in loader.batches(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def drop_all_(model: nn.Module, batches: list, config: DapaConfig, to_original: bool) -> None:
    """Every gate without a kept pixel, its polynomial fitted to its own activation or to ReLU, in network order."""
    for name, gate in iter_gates(model):
        original, gate.original = gate.original, gate.original if to_original else None
        moments = record(model, batches)[name]
        gate.coefficients.copy_(fitted_coefficients(moments, gate.config.degree, config))
        gate.original = original
        gate.mask.fill_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data_path")
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    loaders = make_loaders(args.dataset, args.data_path, 128, device=torch.device("cpu"), seed=0, validation_fraction=0,
                           workers=0, rank=0, world_size=1)
    info = loaders.info
    print("| activation | degree | trained | fitted to it | fitted to ReLU |\n|---|---|---:|---:|---:|")
    for label, activation in ACTIVATIONS.items():
        torch.manual_seed(0)
        model = with_activation(build_model("resnet8", num_classes=info.num_classes, in_channels=info.in_channels,
                                            image_size=info.image_size), activation)
        train_(model, loaders.train, args.epochs)
        dense = evaluate(model, loaders.test).top1
        images = [batch[0] for batch, _ in zip(loaders.train.batches(0), range(10), strict=False)]
        for degree in (1, 2):
            found = []
            for to_original in (True, False):
                other = copy.deepcopy(model)
                convert_relus_(other, images[0][:1], GateConfig(kept="original", degree=degree))
                drop_all_(other, images, DapaConfig(scale_x2=1.0), to_original)
                found.append(f"{evaluate(other, loaders.test).top1:.2f}")
            print(f"| {label} | {degree} | {dense:.2f} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
