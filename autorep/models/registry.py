"""Name -> network: our own CIFAR nets, any torchvision classifier, any timm classifier."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial

from torch import nn

from autorep.models.resnet import ResNet
from autorep.models.vgg import VGG
from autorep.models.wide_resnet import WideResNet

_resnet_in = partial(ResNet, widths=(64, 128, 256, 512), stem_relu=False)
_resnet_cifar = partial(ResNet, widths=(16, 32, 64), stem_relu=True)

_OWN: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(_resnet_cifar, blocks=(1, 1, 1)),
    "resnet20": partial(_resnet_cifar, blocks=(3, 3, 3)),
    "resnet32": partial(_resnet_cifar, blocks=(5, 5, 5)),
    "resnet9_in": partial(_resnet_in, blocks=(1, 1, 1, 1)),
    "resnet18_in": partial(_resnet_in, blocks=(2, 2, 2, 2)),
    "resnet34_in": partial(_resnet_in, blocks=(3, 4, 6, 3)),
    "vgg": VGG,
    "wide_resnet_16_8_drop02": partial(WideResNet, depth=16, width=8, dropout=0.2),
    "wide_resnet_22_8": partial(WideResNet, depth=22, width=8),
    "wide_resnet_28_10_drop02": partial(WideResNet, depth=28, width=10, dropout=0.2),
}


def own_models() -> list[str]:
    """The names of our own nets."""
    return list(_OWN)


def build_model(name: str, num_classes: int = 10, *, in_channels: int = 3, image_size: int = 32,
                pretrained: bool = False, dropout: float | None = None) -> nn.Module:
    """A classifier by name, with the plain attribute `input_shape` = (in_channels, image_size, image_size).

    Args:
        name: one of `own_models()`, a torchvision classifier (`torchvision:efficientnet_b2`, or bare where the name is
            not ours), or a timm one (`timm:NAME`).
        image_size: side of the square images [pixels]; it shapes no weight.
        pretrained: load the library's weights; where their number of classes differs, the classifier is a new one.
        dropout: overrides the net's dropout probability.

    Raises:
        ValueError: an unknown name, or an option that the net does not have.
    """
    if min(num_classes, in_channels, image_size) < 1:
        raise ValueError(f"invalid num_classes={num_classes!r}, in_channels={in_channels!r} or "
                         f"image_size={image_size!r}: expected 1 or more for each")
    library, _, bare = name.rpartition(":")
    if library == "timm":
        model = _build_timm(bare, num_classes, in_channels, pretrained, dropout)
    elif library in ("", "torchvision") and (library or bare not in _OWN) and bare in _torchvision_names():
        model = _build_torchvision(bare, num_classes, in_channels, pretrained, dropout)
    elif name in _OWN:
        model = _build_own(name, num_classes, in_channels, pretrained, dropout)
    else:
        raise _unknown(name)
    model.input_shape = (in_channels, image_size, image_size)
    return model


def _build_own(name: str, num_classes: int, in_channels: int, pretrained: bool, dropout: float | None) -> nn.Module:
    if pretrained:
        raise ValueError(f"invalid pretrained={pretrained!r}: no weights of {name} are published; train it with "
                         "train_baseline.py and pass --pretrained_path, or choose a torchvision or timm net")
    builder, options = _OWN[name], {}
    if dropout is not None:
        if not _takes_dropout(builder):
            raise _no_dropout(name, dropout)
        options["dropout"] = dropout
    return builder(num_classes=num_classes, in_channels=in_channels, **options)


def _build_torchvision(name: str, num_classes: int, in_channels: int, pretrained: bool,
                       dropout: float | None) -> nn.Module:
    if in_channels != 3:
        raise ValueError(f"invalid in_channels={in_channels}: torchvision's {name} expects 3; for other numbers use "
                         f"{', '.join(_OWN)} or timm:NAME")
    import torchvision  # here, because it takes seconds

    options: dict = {} if dropout is None else {"dropout": dropout}
    init: dict = {}
    if name in ("googlenet", "inception_v3"):
        options["aux_logits"] = False  # one output, in training too
        init["init_weights"] = True  # the default, but without it torchvision warns
    try:
        fresh = torchvision.models.get_model(name, num_classes=num_classes, **options, **init)
    except TypeError as error:
        if "dropout" not in str(error):
            raise
        raise _no_dropout(name, dropout) from error
    if not pretrained:
        return fresh
    model = torchvision.models.get_model(name, weights="DEFAULT", **options)
    _take_classifier_(model, fresh)
    return model


def _take_classifier_(model: nn.Module, fresh: nn.Module) -> None:
    """Take over the layers of `fresh` whose parameters differ in shape: those that depend on the number of classes."""
    for name, layer in list(fresh.named_modules()):
        old = model.get_submodule(name).named_parameters(recurse=False)
        if [(n, p.shape) for n, p in old] != [(n, p.shape) for n, p in layer.named_parameters(recurse=False)]:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer)


def _build_timm(name: str, num_classes: int, in_channels: int, pretrained: bool, dropout: float | None) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm:{name} needs the timm package, which is not installed: pip install timm") from error
    if not timm.is_model(name):
        raise _unknown(f"timm:{name}")
    options = {} if dropout is None else {"drop_rate": dropout}
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **options)
    except RuntimeError as error:  # NAME.WEIGHTS
        if "Invalid pretrained tag" not in str(error):
            raise
        arch = name.partition(".")[0]
        known = ", ".join(f"timm:{n}" for n in [arch, *timm.list_pretrained(f"{arch}.*")])
        raise ValueError(f"invalid arch 'timm:{name}': timm has no such weights; expected one of {known}") from error
    except TypeError as error:
        if "drop_rate" not in str(error):
            raise
        raise _no_dropout(f"timm:{name}", dropout) from error


def _takes_dropout(builder: Callable[..., nn.Module]) -> bool:
    return "dropout" in inspect.signature(builder).parameters


def _torchvision_names() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def _no_dropout(name: str, dropout: float | None) -> ValueError:
    own = ", ".join(n for n, builder in _OWN.items() if _takes_dropout(builder))
    return ValueError(f"invalid dropout={dropout}: {name} has no dropout to override; leave it out, or use {own}, a "
                      "torchvision net that takes `dropout` (efficientnet_*, mobilenet_*, vgg*) or a timm net that "
                      "takes `drop_rate`")


def _timm_names() -> list[str]:
    """All networks of timm; none where it is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return timm.list_models()


def _unknown(name: str) -> ValueError:
    """The error for an unknown name, with the nearest ones of any library, that of the name first."""
    library, _, bare = name.rpartition(":")
    known = {"timm": _timm_names(), "torchvision": _torchvision_names(), "": list(_OWN)}
    owners = {n: each for each in (*known, library) for n in known.get(each, ())}
    close = [f"{owners[n]}:{n}".lstrip(":") for n in difflib.get_close_matches(bare, owners, n=5)]
    hint = f"did you mean {', '.join(close)}? " if close else ""
    return ValueError(f"invalid arch {name!r}: {hint}expected one of {', '.join(_OWN)}, any torchvision classifier "
                      "(torchvision:NAME) or any timm classifier (timm:NAME)")
