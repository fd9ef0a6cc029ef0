import itertools

import numpy as np
import pytest
import torch
from slow_bcos import bcos_conv
from torch.nn import functional

from whylens.bcos import BcosConv2d, BcosLinear
from whylens.errors import InputError


def slow_conv(x, weight, b, max_out, stride, padding, dilation, groups, mode):
    """Every output by its own patch, from the definition."""
    widths = [(0, 0), (0, 0), (padding, padding), (padding, padding)]
    names = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    x = np.pad(x, widths, mode=names[mode])
    filters, inputs, kh, kw = weight.shape
    outputs = filters // max_out
    rows = (x.shape[2] - dilation * (kh - 1) - 1) // stride + 1
    columns = (x.shape[3] - dilation * (kw - 1) - 1) // stride + 1
    out = np.zeros((x.shape[0], outputs, rows, columns))
    for n, o, r, c in itertools.product(range(x.shape[0]), range(outputs), range(rows), range(columns)):
        group = o // (outputs // groups)
        ys = [r * stride + dilation * i for i in range(kh)]
        xs = [c * stride + dilation * j for j in range(kw)]
        patch = x[n, group * inputs : (group + 1) * inputs][:, ys][:, :, xs]
        length = np.sqrt((patch**2).sum() + 1e-6)
        best = max(
            (weight[o * max_out + m] / np.linalg.norm(weight[o * max_out + m]) * patch).sum() for m in range(max_out)
        )
        out[n, o, r, c] = best * (abs(best) / length) ** (b - 1)
    return out


@pytest.mark.parametrize("b", [1, 1.5, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "max_out": 2},
        {"kernel_size": 3, "padding": 1, "groups": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2, "max_out": 3},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 2, "padding_mode": "circular", "stride": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "groups": 2},
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": 3, "padding": 2},
    ],
    ids=str,
)
def test_convolutions_are_what_the_definition_says(settings, b):
    torch.manual_seed(0)
    layer = BcosConv2d(4, 4, b=b, **settings).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    get = settings.get
    expected = slow_conv(
        x.numpy(),
        layer.linear.weight.detach().numpy(),
        b,
        get("max_out", 1),
        get("stride", 1),
        get("padding", 0),
        get("dilation", 1),
        get("groups", 1),
        get("padding_mode", "zeros"),
    )
    # For other exponents the layer adds 1e-6 to the cosine, so that its gradient exists at zero.
    loose = 0 if b in (1, 2) else 1e-4
    assert layer(x).detach().numpy() == pytest.approx(expected, rel=1e-10, abs=1e-12 + loose)


def test_the_dense_matrices_of_other_tests_agree_with_the_loops():
    generator = np.random.default_rng(0)
    x, weight = generator.normal(size=(3, 5, 5)), generator.normal(size=(4, 3, 3, 3))
    out, matrix = bcos_conv(x, weight, 2.0, 2, 1)
    assert out == pytest.approx(slow_conv(x[None], weight, 2, 1, 2, 1, 1, 1, "zeros")[0], rel=1e-12)
    assert matrix @ x.reshape(-1) == pytest.approx(out.reshape(-1))


def test_same_padding_of_an_even_kernel():
    torch.manual_seed(0)
    layer = BcosConv2d(3, 2, 4, padding="same").double()
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    inner = BcosConv2d(3, 2, 4).double()
    inner.load_state_dict(layer.state_dict())
    assert torch.allclose(layer(x), inner(functional.pad(x, (1, 2, 1, 2))))
    assert layer(x).shape == (1, 2, 5, 5)


def test_b_of_one_is_a_convolution_with_unit_filters():
    torch.manual_seed(0)
    layer = BcosConv2d(3, 4, 3, padding=1, b=1).double()
    weight = layer.linear.weight.detach()
    unit = weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert torch.allclose(layer(x), functional.conv2d(x, unit, padding=1))
    raw = BcosConv2d(3, 4, 3, padding=1, b=1, unit=False).double()
    raw.load_state_dict(layer.state_dict())
    assert torch.allclose(raw(x), functional.conv2d(x, weight, padding=1))


@pytest.mark.parametrize("b", [1, 2, 2.5])
@pytest.mark.parametrize("max_out", [1, 3])
def test_linear_layers_are_what_the_definition_says(b, max_out):
    torch.manual_seed(0)
    layer = BcosLinear(6, 4, b=b, max_out=max_out).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    weight = layer.linear.weight.detach().numpy()
    weight = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    out = layer(x).detach().numpy()
    for n, t, o in itertools.product(range(2), range(5), range(4)):
        v = x[n, t].numpy()
        best = max(weight[o * max_out + m] @ v for m in range(max_out))
        loose = 0 if b in (1, 2) else 1e-4
        assert out[n, t, o] == pytest.approx(best * (abs(best) / np.linalg.norm(v)) ** (b - 1), abs=1e-12 + loose)


@pytest.mark.parametrize("b", [1, 1.5, 2])
def test_zeros_in_weights_or_pictures_stay_zeros_with_finite_gradients(b):
    torch.manual_seed(0)
    layer = BcosConv2d(3, 2, 3, padding=1, b=b)
    with torch.no_grad():
        layer.linear.weight[0] = 0
    x = torch.rand(1, 3, 4, 4, requires_grad=True)
    out = layer(x)
    assert torch.equal(out[:, 0], torch.zeros_like(out[:, 0]))
    assert bool(out[:, 1].any())
    for given in (x, torch.zeros(1, 3, 4, 4, requires_grad=True)):
        layer.zero_grad()
        layer(given).sum().backward()
        assert torch.isfinite(given.grad).all()
        assert torch.isfinite(layer.linear.weight.grad).all()
    linear = BcosLinear(3, 2, b=b)
    zeros = torch.zeros(2, 3, requires_grad=True)
    linear(zeros).sum().backward()
    assert torch.isfinite(zeros.grad).all()


def test_bad_settings_are_refused():
    for make in (lambda **k: BcosConv2d(3, 2, **k), lambda **k: BcosLinear(3, 2, **k)):
        with pytest.raises(InputError, match=r"exponent b .* at least 1; it is 0\.5"):
            make(b=0.5)
        with pytest.raises(InputError, match="max_out must be a whole number"):
            make(max_out=0)
