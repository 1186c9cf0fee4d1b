"""Converted models under torch.func and forward-mode derivatives: what autograd gives, per sample too."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from autorep import GateConfig, convert_relus_, iter_gates


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last])
def problem(request):
    """A model in float64 whose gates keep half of their ReLUs, its tensors by name, images and labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(4, 5)).double().eval()
    convert_relus_(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64), GateConfig(degree=2))
    for _, gate in iter_gates(model):
        gate.mask.copy_(torch.rand(gate.mask.shape) < 0.5)
        gate.coefficients.data.normal_()
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64).to(memory_format=request.param)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    return model, tensors, images, torch.randint(5, (6,))


def logits_of(model):
    return lambda tensors, images: functional_call(model, (tensors, dict(model.named_buffers())), (images,))


def loss_of(model):
    return lambda tensors, images, labels: F.cross_entropy(logits_of(model)(tensors, images), labels)


def test_gradients_are_those_of_autograd(problem):
    model, tensors, images, labels = problem
    images.requires_grad_()
    F.cross_entropy(model(images), labels).backward()
    found, found_images = grad(loss_of(model), argnums=(0, 1))(tensors, images.detach(), labels)
    torch.testing.assert_close(found, {name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(found_images, images.grad)
    assert any(value.abs().sum() > 0 for name, value in found.items() if name.endswith("score"))


def test_gradients_per_sample_average_to_those_of_the_batch(problem):
    model, tensors, images, labels = problem
    loss = loss_of(model)
    each = vmap(grad(lambda t, x, y: loss(t, x[None], y[None])), in_dims=(None, 0, 0))(tensors, images, labels)
    torch.testing.assert_close({name: value.mean(0) for name, value in each.items()},
                               grad(loss)(tensors, images, labels))


def test_forward_mode_is_the_transpose_of_the_gradient(problem):
    model, tensors, images, labels = problem
    loss = loss_of(model)
    along = {name: torch.randn_like(value) for name, value in tensors.items()}, torch.randn_like(images)
    _, slope = jvp(lambda t, x: loss(t, x, labels), (tensors, images), along)
    of_tensors, of_images = grad(loss, argnums=(0, 1))(tensors, images, labels)
    expected = sum((of_tensors[name] * along[0][name]).sum() for name in tensors) + (of_images * along[1]).sum()
    torch.testing.assert_close(slope, expected)
    with forward_ad.dual_level():
        _, dual = forward_ad.unpack_dual(model(forward_ad.make_dual(images, along[1])))
    torch.testing.assert_close(dual, jvp(lambda x: logits_of(model)(tensors, x), (images,), (along[1],))[1])


def test_jacobians_and_second_derivatives(problem):
    model, tensors, images, labels = problem
    def logits(x):
        return logits_of(model)(tensors, x)
    torch.testing.assert_close(jacfwd(logits)(images[:1]), jacrev(logits)(images[:1]))

    def loss(x):
        return loss_of(model)(tensors, x[None], labels[:1])
    along, tiny = torch.randn_like(images[0]), 1e-6
    numeric = (grad(loss)(images[0] + tiny * along) - grad(loss)(images[0] - tiny * along)) / (2 * tiny)
    found = (hessian(loss)(images[0]).flatten(3).flatten(0, 2) @ along.flatten()).reshape(along.shape)
    torch.testing.assert_close(found, numeric, rtol=1e-4, atol=1e-7)


def test_a_range_limits_forward_mode_too(problem):
    model, tensors, images, _ = problem
    for _, gate in iter_gates(model):
        channels = len(gate.mask)
        gate.range_3C = torch.tensor([[-0.2], [0.2], [0.0]], dtype=torch.float64).expand(3, channels).contiguous()
    model.train()
    def logits(x):
        return logits_of(model)(tensors, x)
    torch.testing.assert_close(jacfwd(logits)(images[:1]), jacrev(logits)(images[:1]))
