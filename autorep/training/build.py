"""From a configuration to its model and objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from autorep.act_types import act_type_of
from autorep.config import RunConfig
from autorep.convert.swap import convert_relus_
from autorep.gates.polynomial_sigmoid import iter_fitted
from autorep.models.registry import build_model
from autorep.models.untouched import untouched
from autorep.runs import checkpoint
from autorep.search.budget import check_budget
from autorep.search.masks import project_to_budget_
from autorep.search.price import trace_prices
from autorep.search.price_model import PriceModel
from autorep.search.relu_count import ReLUCount, count_relus
from autorep.training.objective import CrossEntropy, Distillation


def initial_model(config: RunConfig, info: Any, device: torch.device) -> nn.Module:
    """The network that a run starts from, on its device: dense weights, then gates, then those of a checkpoint."""
    model, start = config.model, config.checkpoint_path
    if config.gate and not (model.pretrained or model.pretrained_path or start):
        raise ValueError("AutoReP starts from a trained network: give `model.pretrained_path` (RUN_FOLDER/last.pth.tar "
                         "of a baseline), `model.pretrained` for the library's weights, or `checkpoint_path` of an "
                         "AutoReP run")
    if config.gate and config.search_epochs == 0 and not start:
        raise ValueError("a run with `search_epochs`=0 only fine-tunes: give the searched network as `checkpoint_path`")
    net = _network(model.arch, info, pretrained=model.pretrained, dropout=model.dropout)
    if model.pretrained_path and not start:
        checkpoint.load_pretrained_(net, model.pretrained_path)
    net = net.to(device, memory_format=torch.channels_last)
    if config.gate:
        net = convert_relus_(net, torch.zeros(1, *net.input_shape, device=device), config.gate).model
        relus = count_relus(net)
        check_budget(config.budget, relus.total, len(relus.layers))
        for _, each in iter_fitted(net):
            each.coefficients.requires_grad_(each.coefficients.requires_grad and not config.freeze_coefficients)
    if start:
        try:
            net.load_state_dict(checkpoint.load(start)["model"])
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise ValueError(f"{start} does not fit `model.arch`={model.arch} with {act_type_of(config.gate)}: "
                             f"give the settings of the run that wrote it ({reason})") from error
    return net


def _network(arch: str, info: Any, **options: Any) -> nn.Module:
    """A network by name, for the images of a data set. Raises ValueError where it cannot run on them."""
    net = build_model(arch, info.num_classes, in_channels=info.in_channels, image_size=info.image_size, **options)
    try:
        with untouched(net), torch.no_grad():
            net.eval()(torch.zeros(1, *net.input_shape))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{arch} cannot run on images {list(net.input_shape)} [C, H, W] of `data.dataset`={info.name} "
                         f"({' '.join(str(error).split())[:200]}): choose another network") from error
    return net


def relu_total(config: RunConfig, info: Any) -> ReLUCount:
    """ReLUs per image of the network that a configuration names. Raises as `check_budget`."""
    relus = count_relus(_network(config.model.arch, info))
    if config.budget:
        check_budget(config.budget, relus.total, len(relus.layers))
    return relus


def price_model(config: RunConfig, info: Any) -> PriceModel:
    """The price of the network that a configuration with `budget.price` names. Raises as `PriceModel`."""
    net = _network(config.model.arch, info)
    example = torch.zeros(1, *net.input_shape)
    return PriceModel(convert_relus_(net, example, config.gate).model, example, config.budget)


def planned_price(config: RunConfig, info: Any) -> str | None:
    """What an image costs under SEMI2K at wan with all ReLUs, and with the budget spread over all layers.

    None where private inference cannot run the network, after one line that says why.
    """
    torch.manual_seed(config.seed)  # scores are random, and with them the pixels that keep a ReLU
    net = _network(config.model.arch, info)
    convert_relus_(net, torch.zeros(1, *net.input_shape), config.gate)
    if (traced := trace_prices(net)) is None:
        return None
    project_to_budget_(net, config.budget.relu_budget, config.budget.relu_layers)
    if config.gate.replacement != "identity":
        for _, each in iter_fitted(net):
            each.coefficients.data.fill_(0.5)
    found = {name: engines["spu-semi2k"] for name, engines in traced.now(("all_relu", "trained")).items()}
    all_relu, budget = (f"{each['bytes'] / 1e6:,.1f} MB, {each['rounds']:,} rounds and "
                        f"{each['link_seconds']['wan']:.2f} s" for each in found.values())
    return (f"price of an image under spu-semi2k:wan: {all_relu} with all ReLUs; {budget} with "
            f"{config.budget.relu_budget:,} spread over all layers")


def describe_run(config: RunConfig, info: Any) -> dict[str, Any]:
    """What a checkpoint needs to build the network of a run again."""
    return checkpoint.describe_model(config.model.arch, info.num_classes, info.in_channels, info.image_size,
                                     config.model.dropout, config.gate)


def build_objective(config: RunConfig, info: Any, device: torch.device) -> CrossEntropy | Distillation:
    """The loss of a run, with its teacher on the device. Raises FileNotFoundError or ValueError for the teacher's."""
    if config.distill is None:
        return CrossEntropy(config.label_smoothing)
    teacher = _network(config.distill.teacher_arch, info)
    checkpoint.load_pretrained_(teacher, config.distill.teacher_path)
    return Distillation(teacher.to(device, memory_format=torch.channels_last), config.distill.temperature)
