import math

import pytest
import torch

from whylens.bcos import decode_colours, full_opacity, opacity
from whylens.errors import InputError


def six(colour):
    return torch.tensor([*colour, *(1 - c for c in colour)], dtype=torch.float64)


def flat(colour, side=9):
    return six(colour).view(1, 6, 1, 1).expand(1, 6, side, side).clone()


@pytest.mark.parametrize("colour", [(1, 0, 0), (0, 1, 1), (0, 0, 0), (1, 1, 1)])
def test_a_weight_along_a_pure_colour_is_drawn_in_it(colour):
    x = flat(colour)
    rgba = decode_colours(x, x)[0]
    assert torch.allclose(rgba[:3, 4, 4], torch.tensor(colour, dtype=torch.float64), atol=1e-9)
    assert float(rgba[3, 4, 4]) == 1


def test_mixed_colours_come_back_from_weights_along_the_encoding():
    x = flat((0.2, 0.6, 0.9))
    assert torch.allclose(
        decode_colours(x, x)[0, :3, 4, 4], torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64), atol=1e-9
    )


def test_one_pixel_alone_is_opaque_and_everything_finite():
    """A percentile over all pixels would be 0 here, and 0 / 0 in almost the whole picture."""
    x = flat((0.5, 0.5, 0.5), 64)
    weights = torch.zeros_like(x)
    weights[0, :, 10, 20] = x[0, :, 10, 20]
    rgba = decode_colours(weights, x, smooth=1)
    assert torch.isfinite(rgba).all()
    assert float(rgba[0, 3, 10, 20]) == 1
    assert float(rgba[0, 3].sum()) == 1
    smoothed = decode_colours(weights, x, smooth=3)[0, 3]
    assert int((smoothed > 0).sum()) == 9


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_nothing_in_favour_is_transparent_everywhere(factor):
    x = flat((0.3, 0.6, 0.1))
    rgba = decode_colours(factor * x, x)
    assert torch.isfinite(rgba).all()
    assert not bool(rgba[:, 3].any())


def test_opacity_follows_strength_and_ignores_what_speaks_against():
    x = flat((1, 1, 1), 11)
    weights = torch.zeros_like(x)
    weights[0, 0, 2, 2], weights[0, 0, 8, 8], weights[0, 0, 5, 5] = 4.0, 1.0, -9.0
    strength = opacity(weights, x, smooth=1)[0]
    assert float(strength[2, 2]) == 4
    assert float(strength[8, 8]) == 1
    assert float(strength[5, 5]) == 0
    box = opacity(weights, x, smooth=3)[0]
    assert float(box[1, 3]) == pytest.approx(4 / 9)
    assert float(box[0, 0]) == 0


def test_the_percentile_is_over_positive_values():
    strength = torch.cat([torch.zeros(900), torch.arange(1, 101).float()])
    assert float(full_opacity(strength, 50)) == pytest.approx(50.5)
    assert float(full_opacity(torch.zeros(5))) == 0
    assert math.isclose(float(full_opacity(strength, 100)), 100)


def test_a_shared_scale_keeps_weak_pictures_weak():
    x = flat((1, 1, 1)).expand(2, -1, -1, -1)
    weights = x * torch.tensor([1.0, 0.25]).view(2, 1, 1, 1)
    own = decode_colours(weights, x)
    shared = decode_colours(weights, x, scale=full_opacity(opacity(weights, x)))
    assert float(own[1, 3, 4, 4]) == 1
    assert float(shared[0, 3, 4, 4]) == 1
    assert float(shared[1, 3, 4, 4]) == pytest.approx(0.25)
    assert float(decode_colours(weights, x, scale=0.0)[:, 3].max()) == 1


def test_bad_shapes_and_settings_are_refused():
    x = flat((1, 1, 1))
    with pytest.raises(InputError, match=r"must both be \(B, 6, H, W\)"):
        decode_colours(x[:, :3], x)
    with pytest.raises(InputError, match="odd number"):
        decode_colours(x, x, smooth=2)
    with pytest.raises(InputError, match="percentile"):
        decode_colours(x, x, percentile=0)
