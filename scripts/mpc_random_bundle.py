"""Write a bundle of a network with random weights, to measure private inference before there is a checkpoint.

Bytes, rounds and seconds depend only on the architecture, the masks and the degree; accuracy means nothing here.
"""

from __future__ import annotations

import argparse

import torch

from autorep import GateConfig, build_model, convert_relus_, iter_gates
from autorep.mpc.export.to_bundle import export_model


def main() -> None:
    """Write the bundle that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--num_classes", type=int, default=100)
    parser.add_argument("--relus", type=int, required=True, help="number of ReLUs to keep, at random places")
    parser.add_argument("--degree", type=int, choices=(1, 2), default=2)
    parser.add_argument("--images", type=int, default=8, help="random images to store in the bundle")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    shape = (3, args.image_size, args.image_size)
    model = build_model(args.arch, args.num_classes, image_size=args.image_size)
    model = convert_relus_(model.eval(), torch.randn(1, *shape),
                           GateConfig(degree=args.degree, kept="relu", sigmoid="hard")).model
    keep_at_random_(model, args.relus, args.degree)
    with torch.no_grad():
        for _ in range(20):  # Without batch-norm statistics, quadratics would grow without bound.
            model.train()(torch.randn(32, *shape))
    model.eval()
    export_model(model, torch.randn(args.images, *shape), torch.full((args.images,), -1), args.out,
                 meta={"arch": args.arch, "weights": "random", "dataset": "random", "degree": args.degree})


def keep_at_random_(model: torch.nn.Module, num_relus: int, degree: int) -> None:
    """Keep `num_relus` ReLUs spread over all gates; the rest become the Gaussian fit of a ReLU."""
    gates = [gate for _, gate in iter_gates(model)]
    kept = torch.zeros(sum(gate.num_total for gate in gates), dtype=torch.bool)
    kept[torch.randperm(len(kept))[:num_relus]] = True
    for gate, mask in zip(gates, kept.split([gate.num_total for gate in gates]), strict=True):
        gate.mask.copy_(mask.reshape(gate.mask.shape))
        # z = 0, std = 1: c2 = phi(0) / 2, c1 = 1/2, c0 = phi(0) / 2; the linear fit has c0 = phi(0).
        linear = torch.tensor([0.3989, 0.5])
        gate.coefficients.data.copy_(linear if degree == 1 else torch.tensor([0.1995, 0.5, 0.1995]))


if __name__ == "__main__":
    main()
