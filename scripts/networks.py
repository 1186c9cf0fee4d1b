"""Which networks of torchvision and timm convert, train a step, are exported, agree on the ring, and what they cost.

    python scripts/networks.py [NAME...] [--size 96] [--sigmoid hard]

Weights are random, which changes no price. Every second gate pixel is dropped. One row per network, in Markdown; a
refusal is its row's last cell.
"""

from __future__ import annotations

import argparse
import tempfile

import torch

from autorep import GateConfig, build_model, convert_relus_, count_relus, iter_gates
from autorep.config import DapaConfig
from autorep.dapa.calibrate import calibrate_
from autorep.mpc.bundle.files import load_graph, load_samples, load_weights
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.engines import parse_network
from autorep.mpc.export.to_bundle import export_model
from autorep.mpc.ring.agreement import count_agreeing
from autorep.mpc.ring.fixed_point import FixedPoint

NETWORKS = [f"torchvision:{name}" for name in (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_b2", "efficientnet_v2_s", "googlenet",
    "inception_v3", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "vgg11_bn", "wide_resnet50_2")] + [
    f"timm:{name}" for name in (
    "cspresnet50", "cs3darknet_s", "darknet53", "densenet121", "dla34", "dpn68", "efficientnet_b0", "ese_vovnet19b_dw",
    "fbnetc_100", "gernet_s", "ghostnet_100", "hardcorenas_a", "hrnet_w18_small", "lcnet_050", "mixnet_s",
    "mobilenetv3_small_050", "mobileone_s0", "nf_resnet50", "regnety_002", "repvgg_a0", "res2net50_26w_4s",
    "resnest14d", "rexnet_100", "seresnet18", "skresnet18", "tinynet_e", "tresnet_m", "vgg11", "xception41")]
IMAGES = 4


def settle_norms_(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Batch-norm statistics of these images, in place of the initial ones."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        model(images)
    model.eval()


def row(name: str, size: int, sigmoid: str) -> list[str]:
    """The cells of one network; the first failure ends it."""
    torch.manual_seed(0)
    cells = [name]
    try:
        model = build_model(name, image_size=size)
        images = torch.randn(IMAGES, 3, size, size)
        settle_norms_(model, images)
        convert_relus_(model, images, GateConfig(kept="relu", sigmoid=sigmoid))
        cells.append(f"{count_relus(model).total:,}")
        calibrate_(model, [images], DapaConfig())
        torch.nn.functional.cross_entropy(model(images), torch.zeros(IMAGES, dtype=torch.long)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        torch.optim.SGD(model.parameters(), 1e-3).step()
        cells.append("yes")
        calibrate_(model, [images], DapaConfig())
        for _, gate in iter_gates(model):
            gate.mask.copy_(torch.rand(gate.mask.shape) < 0.5)
        settle_norms_(model, images)
        with tempfile.TemporaryDirectory() as folder:
            export_model(model, images, torch.zeros(IMAGES, dtype=torch.long), folder)
            graph = load_graph(folder)
            agreeing = count_agreeing(graph, load_weights(folder, graph), load_samples(folder, graph), FixedPoint())
        price = estimate(graph, FixedPoint(), [parse_network("wan")])["spu-semi2k"]
        cells += ["yes", f"{agreeing} of {IMAGES}", f"{price['bytes'] / 1e6:,.1f} MB, {price['rounds']} rounds"]
    except (ValueError, RuntimeError, AssertionError, ImportError) as error:
        cells += ["no"] * (5 - len(cells)) + [" ".join(str(error).split())[:160]]
    return cells


def main() -> None:
    """Print the table of the networks that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NETWORKS)
    parser.add_argument("--size", type=int, default=96, help="height and width of the images")
    parser.add_argument("--sigmoid", choices=("hard", "poly"), default="hard", help="what sigmoids become")
    args = parser.parse_args()
    print("| network | activations | trains a step | exported | same class on the ring | SEMI2K, half of them kept |")
    print("|---|---|---|---|---|---|")
    for name in args.names:
        print("| " + " | ".join(row(name, args.size, args.sigmoid)) + " |", flush=True)


if __name__ == "__main__":
    main()
