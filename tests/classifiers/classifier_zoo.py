"""Networks with cheap random weights, and the one check that every architecture must pass."""

import contextlib

import torch
from torch import nn

from whylens.classifiers import Classifier
from whylens.classifiers.outputs import extract_logits

# Prime, so that repeating it never lines up with the rows of a weight.
_NOISE = torch.empty(1_000_003).uniform_(-1.7, 1.7, generator=torch.Generator().manual_seed(0))

_SLOW_INITS = ("normal_", "uniform_", "erfinv_", "clamp_")
_SLOW_FUNCTIONS = ("trunc_normal_", "orthogonal_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_")


@contextlib.contextmanager
def without_initialisation():
    """Random initialisation is skipped inside: it takes most of the time of building a large network."""
    tensor = {name: getattr(torch.Tensor, name) for name in _SLOW_INITS}
    functions = {name: getattr(nn.init, name) for name in _SLOW_FUNCTIONS}
    try:
        for name in tensor:
            setattr(torch.Tensor, name, lambda self, *args, **kwargs: self)
        for name in functions:
            setattr(nn.init, name, lambda value, *args, **kwargs: value)
        yield
    finally:
        for name, original in tensor.items():
            setattr(torch.Tensor, name, original)
        for name, original in functions.items():
            setattr(nn.init, name, original)


@torch.no_grad()
def fill(module):
    """Fill every weight from one buffer: fan-in scaled matrices, norms near one, gains that let all branches speak."""
    start = 0
    for name, value in module.named_parameters():
        flat = value.reshape(-1) if value.is_contiguous() else torch.empty(value.numel())
        for at in range(0, flat.numel(), len(_NOISE)):
            piece = flat[at : at + len(_NOISE)]
            shift = start % 100_000
            source = _NOISE[shift : shift + len(piece)]
            piece[: len(source)] = source
            piece[len(source) :] = _NOISE[: len(piece) - len(source)]
            start += 7919
        if value.ndim >= 2:
            # Layer scales and position tables have a long first axis of ones or few tokens; they stay of order 0.3.
            fan_in = max(value[0].numel(), 1)
            scale = 0.3 if name.endswith(("gamma", "embed", "token", "scale")) else (2.0 / fan_in) ** 0.5
            flat.mul_(scale)
        elif name.endswith(("weight", "scale")):
            flat.mul_(0.2).add_(1.0)
        else:
            flat.mul_(0.3)
        if not value.is_contiguous():
            value.copy_(flat.view(value.shape))
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1.0)
        elif name.endswith("running_mean"):
            buffer.zero_()
    return module


def build(make):
    with without_initialisation():
        module = make()
    return fill(module).eval()


def check(module, size, features=None):
    """head(features(x)) against a forward pass that whylens has no part in; affine head; gradients."""
    sides = (size, size) if isinstance(size, int) else size
    classifier = Classifier(module, size=sides, features=features)
    x = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(7))
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    with torch.no_grad():
        expected = extract_logits(module((x - mean.view(3, 1, 1)) / std.view(3, 1, 1)), 2)
    spread = float((expected[0] - expected[1]).abs().max())
    # A network that says the same of every picture would prove nothing.
    assert spread > 1e-4 * float(expected.abs().max()), f"logits hardly depend on the picture ({spread:g})"
    bound = 1e-4 * spread + 1e-5 * float(expected.abs().max())

    z = classifier.features(x).detach().requires_grad_(True)
    assert z.shape[:2] == (2, classifier.width)
    assert z.ndim == (4 if classifier.spatial else 2)
    logits = classifier.head(z)
    assert float((logits.detach() - expected).abs().max()) <= bound
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), z)
    assert gradient.abs().sum() > 0
    assert torch.isfinite(gradient).all()
    if classifier.affine_head is not None:
        again = classifier.pool(z).detach() @ classifier.affine_head.weight.T + classifier.affine_head.bias
        assert float((again - expected).abs().max()) <= 10 * bound
        share = gradient.flatten(2).sum(-1) if gradient.ndim == 4 else gradient
        assert torch.allclose(share, classifier.affine_head.weight[0].expand_as(share), rtol=1e-3, atol=1e-5)
    return classifier
