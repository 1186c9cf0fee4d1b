"""From a trained torch network to a bundle."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autorep.data.datasets import dataset_info
from autorep.models.untouched import evaluating
from autorep.mpc.bundle.files import save_bundle
from autorep.mpc.bundle.graph import Arrays, Graph, Samples
from autorep.mpc.bundle.interpreter import logits_float, record_ranges
from autorep.mpc.export.images import read_images
from autorep.mpc.export.trace import trace_model
from autorep.mpc.ring.agreement import ResolutionProblem, check_format, check_resolution
from autorep.mpc.ring.automatic import with_local_agreement
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.local_truncation import TruncationProblem
from autorep.mpc.ring.prediction import RangeProblem
from autorep.runs import checkpoint

LARGEST_ERROR = 1e-4  # of the interpreter compared with torch, relative to the largest logit


def export_model(model: nn.Module, images: Tensor, labels: Tensor, folder: str | Path, *,
                 range_images: Tensor | None = None, meta: dict[str, Any] | None = None,
                 fixed: FixedPoint | None = None) -> list[RangeProblem | TruncationProblem | ResolutionProblem]:
    """Write the bundle of a model, after a check of its logits, on the samples and on noise, and of recorded ranges.

    Args:
        images: the client's samples as the model takes them [K, C, H, W], float32 or float64.
        labels: whole numbers [K], -1 where unknown.
        fixed: the number format that the bundle is checked for.
        range_images: more images over which ranges are recorded, besides the samples.

    Returns: what deserves a warning: tensors that come close to wrapping around, worst first, and a format that changes
        the class of the samples.

    Raises:
        ValueError: the model cannot be exported, the interpreter does not reproduce its logits, or a recorded range
            does not fit the number format. Nothing is written then.
    """
    _require_samples(images, labels)
    traced = trace_model(model, images)
    weights = traced.weights
    outputs = _outputs(model, images)
    if not outputs.isfinite().all():
        raise ValueError("the model computes numbers that are not finite on the samples: look for NaN in its weights "
                         "and in the images, or train with a narrower --range_width if its polynomials overflow")
    noise = _noise(images)
    of_noise = _outputs(model, noise)
    images, seen, noise = (given.detach().float().cpu() for given in (
        images, images if range_images is None else torch.cat([images, range_images]), noise))
    graph = Graph("input", tuple(images.shape[1:]), traced.ops, traced.public, {},
                  {**(meta or {}), "gates": traced.gate_names, "left_out": traced.left_out})
    graph = replace(graph, ranges=record_ranges(graph, weights, seen.numpy()))
    logits = _checked_logits(graph, weights, model, images, outputs)
    if of_noise.isfinite().all():  # polynomials may overflow on what is no image
        _checked_logits(graph, weights, model, noise, of_noise)
    fixed = fixed or FixedPoint()
    problems = check_format(graph, fixed)
    if any(problem.fatal for problem in problems):
        raise ValueError("recorded ranges do not fit the ring: " + "; ".join(str(p) for p in problems if p.fatal))
    reference = outputs if traced.left_out is None else logits
    samples = Samples(images.numpy(), labels.long().cpu().numpy(), reference.numpy())
    weights = {k: v.astype(np.float32) for k, v in weights.items()}
    resolution = check_resolution(graph, weights, samples, fixed)
    save_bundle(folder, with_local_agreement(graph, weights, samples), weights, samples)
    return [*problems, *resolution]


def _require_samples(images: Tensor, labels: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype not in (torch.float32, torch.float64) or not len(images):
        what = f"{images.dtype}, {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"invalid images ({what}): expected a tensor of one image or more, float32 or float64, as the "
                         "model takes them; export a model of half precision after MODEL.float()")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != images.shape[:1]:
        what = f"{labels.dtype}, {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"invalid labels ({what}): expected a tensor of whole numbers, one class for each of "
                         f"{len(images)} images")


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        # Clones, because a model may write into its images.
        return torch.cat([model(part.clone()) for part in images.split(64)]).double().cpu()


def _noise(images: Tensor) -> Tensor:
    """Random images [2, C, H, W] of the scale of these, which differ in whatever a network may compute."""
    normal = torch.randn(2, *images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images)
    return images.mean() + (1 + images.std(correction=0)) * normal


def _checked_logits(graph: Graph, weights: Arrays, model: nn.Module, images: Tensor, outputs: Tensor) -> Tensor:
    """Logits by the interpreter. Raises ValueError where they are not those behind the model's outputs."""
    logits, left_out = torch.from_numpy(logits_float(graph, weights, images.numpy())), graph.meta["left_out"]
    found = logits if left_out is None else getattr(F, left_out)(logits, dim=1)
    error = _difference(found, outputs, left_out)
    if not error <= LARGEST_ERROR:  # what float32 rounds adds up in deep networks, and is no mistake of the export
        exact = _exact_outputs(model, images)
        error = error if exact is None else _difference(found, exact, left_out)
    if not error <= LARGEST_ERROR:
        raise ValueError(f"the exported network differs from torch by {error:.2e} of the largest logit: not written")
    return logits


def _exact_outputs(model: nn.Module, images: Tensor) -> Tensor | None:
    """In float64; None of a model that computes in another type, whatever it is given."""
    try:
        return _outputs(copy.deepcopy(model).cpu().double(), images.double())
    except (RuntimeError, TypeError):
        return None


def _difference(ours: Tensor, theirs: Tensor, left_out: str | None) -> float:
    """The largest difference of outputs, relative to the largest logit."""
    ours, theirs = (_logits(outputs, left_out) for outputs in (ours, theirs))
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))


def _logits(outputs: Tensor, left_out: str | None) -> Tensor:
    """The logits before a softmax, up to a number per image: small ones hardly show in what a softmax makes of them."""
    if left_out is None:
        return outputs
    logs = outputs if left_out == "log_softmax" else outputs.clamp(min=1e-30).log()
    return logs - logs.mean(1, keepdim=True)


def export_checkpoint(path: str, folder: str | Path, *, data_path: str | None, num_images: int,
                      fixed: FixedPoint | None = None) -> list[RangeProblem | TruncationProblem | ResolutionProblem]:
    """Write the bundle of a checkpoint, with images spread evenly over the test split of its own data set.

    Ranges are recorded over those and as many images of the training split. Returns and raises as `export_model`.
    """
    payload = checkpoint.load(path)
    config, model = checkpoint.config_of(payload, path), checkpoint.build_from(payload, path)
    if broken := checkpoint.not_finite(model):
        raise ValueError(f"{path} holds numbers that are not finite, in {', '.join(broken[:3])}: its training diverged")
    data_path = data_path or config.data.data_path
    info = dataset_info(config.data.dataset, data_path)
    spread = dict.fromkeys(("test", "train"), lambda n: np.unique(np.linspace(0, n - 1, num_images).astype(int)))
    (test, labels), (train, _) = read_images(info, data_path, spread).values()
    meta = {"arch": payload["model_args"]["name"], "dataset": config.data.dataset, "checkpoint": Path(path).name,
            "weights": "trained", "degree": config.gate.degree if config.gate else None}
    return export_model(model, test, torch.from_numpy(labels), folder, range_images=train, meta=meta,
                        fixed=fixed)
