import numpy as np
import pytest
import torch

from whylens.alignment import Moments
from whylens.errors import FitError, InputError


def pairs(count: int, d: int = 37, m: int = 11, *, offset: float = 0.0, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    f = torch.randn(count, d, generator=generator) * torch.linspace(0.1, 3, d) + offset
    return f, 0.3 * f[:, :m] + torch.randn(count, m, generator=generator) - offset


def reference(f: torch.Tensor, g: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = f.double().numpy(), g.double().numpy()
    a, b = a - a.mean(0), b - b.mean(0)
    return a.T @ a / len(a), a.T @ b / len(a), b.T @ b / len(a)


def assert_close(moments: Moments, f: torch.Tensor, g: torch.Tensor, tolerance: float = 1e-5) -> None:
    for got, expected in zip(moments.covariances(), reference(f, g), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, atol=tolerance * np.abs(expected).max())
    np.testing.assert_allclose(moments.means()[0].numpy(), f.double().mean(0).numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 7, 500, 9000])
@pytest.mark.parametrize("d", [37, 300])
def test_streaming_equals_a_fp64_reference(batch: int, d: int) -> None:
    f, g = pairs(9000 if batch > 1 else 300, d)
    moments = Moments(d, 11)
    for a, b in zip(f.split(batch), g.split(batch), strict=True):
        moments.update(a, b)
    assert moments.count == len(f)
    assert_close(moments, f, g)


def test_a_huge_offset_costs_no_precision() -> None:
    f, g = pairs(20_000, offset=2000.0)
    moments = Moments(37, 11)
    for a, b in zip(f.split(512), g.split(512), strict=True):
        moments.update(a, b)
    assert_close(moments, f, g, 2e-5)


def test_merged_parts_equal_the_whole_in_any_order() -> None:
    f, g = pairs(3000, offset=5.0)
    g[2000:] += 30
    parts = []
    for a, b in zip(f.split(1000), g.split(1000), strict=True):
        part = Moments(37, 11)
        part.update(a, b)
        parts.append(part)
    for order in ([0, 1, 2], [2, 0, 1]):
        whole = Moments(37, 11)
        for i in order:
            whole.merge(parts[i])
        assert whole.count == 3000
        assert_close(whole, f, g)
    assert parts[0].count == 1000
    empty = Moments(37, 11)
    whole.merge(empty)
    assert_close(whole, f, g)


def test_resuming_from_a_saved_state_equals_one_run() -> None:
    f, g = pairs(5000, offset=100.0)
    first = Moments(37, 11)
    first.update(f[:1234], g[:1234])
    second = Moments.from_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    second.update(f[1234:], g[1234:])
    assert second.count == 5000
    assert_close(second, f, g)
    fresh = Moments.from_state_dict(Moments(37, 11).state_dict())
    fresh.update(f, g)
    assert_close(fresh, f, g)


def test_reusing_the_caller_s_buffer_is_safe() -> None:
    f, g = pairs(100)
    buffer_f, buffer_g = torch.empty(50, 37), torch.empty(50, 11)
    moments = Moments(37, 11)
    for start in (0, 50):
        buffer_f.copy_(f[start : start + 50])
        buffer_g.copy_(g[start : start + 50])
        moments.update(buffer_f, buffer_g)
        buffer_f.zero_()
    assert_close(moments, f, g)


def test_a_nan_feature_is_named() -> None:
    f, g = pairs(20)
    f[7, 5] = float("nan")
    f[9, 30] = float("inf")
    with pytest.raises(FitError, match=r"2 of 37 features are NaN or infinite \(number 5, 30\).*first: row 7"):
        Moments(37, 11).update(f, g)
    with pytest.raises(FitError, match="embedding coordinate"):
        Moments(37, 11).update(pairs(20)[0], g.fill_(float("nan")))


def test_other_shapes_are_refused() -> None:
    moments = Moments(37, 11)
    with pytest.raises(InputError, match="same n pictures"):
        moments.update(torch.zeros(3, 37), torch.zeros(4, 11))
    with pytest.raises(InputError, match="37 x 11"):
        moments.update(torch.zeros(3, 36), torch.zeros(3, 11))
    with pytest.raises(InputError, match="merged"):
        moments.merge(Moments(36, 11))
    with pytest.raises(InputError, match="lack"):
        Moments.from_state_dict({})
    with pytest.raises(FitError, match="nothing to align"):
        moments.means()
