import numpy as np
import pytest
import torch
from map_networks import SIZE, Cnn, Linear, classifier, pictures, seeded
from torch import nn

from whylens.checks import check_map_method
from whylens.errors import InputError
from whylens.maps import Occlusion, Rise
from whylens.maps.perturbation import rise_masks
from whylens.maps.references import blur

TARGETS = torch.tensor([1, 0])


def arrays(method, model, x, **options):
    return torch.stack([torch.from_numpy(m.array) for m in method(model, x, TARGETS, **options)])


@pytest.mark.parametrize(("window", "stride"), [(4, 4), (5, 2), (3, 3), (12, 12), (1, 1)])
@pytest.mark.parametrize("output", ["logit", "probability"])
def test_occlusion_equals_a_slow_loop(window: int, stride: int, output: str) -> None:
    model, x = classifier(seeded(Cnn)), pictures()

    def value(picture, target):
        with torch.no_grad():
            logits = model.module(picture[None])[0]
        return float((logits if output == "logit" else logits.softmax(0))[target])

    def starts(length):
        found = list(range(0, length - window + 1, stride))
        return found if found[-1] + window >= length else [*found, length - window]

    found = arrays(Occlusion(window=window, stride=stride, reference="grey", output=output), model, x)
    for i, target in enumerate(TARGETS.tolist()):
        total, count = np.zeros(SIZE), np.zeros(SIZE)
        for top in starts(SIZE[0]):
            for left in starts(SIZE[1]):
                hidden = x[i].clone()
                hidden[:, top : top + window, left : left + window] = 0.5
                total[top : top + window, left : left + window] += value(x[i], target) - value(hidden, target)
                count[top : top + window, left : left + window] += 1
        assert count.min() >= 1
        assert np.abs(found[i].numpy() - total / count).max() < 1e-5


def test_occlusion_agrees_with_captum_on_a_regular_grid() -> None:
    from captum.attr import Occlusion as Captum

    cnn, x = seeded(Cnn).eval(), pictures()
    expected = Captum(cnn).attribute(
        x, sliding_window_shapes=(3, 4, 4), strides=(3, 2, 2), baselines=0.5, target=TARGETS
    )
    found = arrays(Occlusion(window=4, stride=2, reference="grey"), classifier(cnn), x)
    assert torch.allclose(found, expected[:, 0].detach(), atol=1e-5)


def test_occlusion_of_a_linear_model_with_single_pixels_is_its_contributions() -> None:
    model, x = classifier(Linear()), pictures()
    expected = (model.module.weight[TARGETS] * (x - 0.5)).sum(1)
    assert torch.allclose(arrays(Occlusion(window=1, reference="grey"), model, x), expected, atol=1e-4)
    against = arrays(Occlusion(window=1, reference="grey"), model, x, contrasts=torch.tensor([2, 2]))
    other = (model.module.weight[2] * (x - 0.5)).sum(1)
    assert torch.allclose(against, expected - other, atol=1e-4)


def test_passes_are_counted() -> None:
    model, x = classifier(Linear()), pictures()
    # 3 x 4 windows of 4 pixels and the picture, each a forward pass.
    assert Occlusion(window=4, stride=4)(model, x, TARGETS)[0].passes == 13 / 2
    assert Rise(masks=10)(model, x, TARGETS)[1].passes == 5


def test_rise_masks_are_smooth_and_keep_the_stated_share() -> None:
    masks = rise_masks(4000, (30, 41), 5, 0.3, torch.Generator().manual_seed(0))
    assert masks.shape == (4000, 30, 41)
    assert masks.min() >= 0
    assert masks.max() <= 1 + 1e-5
    # A value is a mixture of at most four cells, so its variance is at most keep (1 - keep): five standard errors.
    error = 5 * (0.3 * 0.7 / 4000) ** 0.5
    assert (masks.mean(0) - 0.3).abs().max() < error
    # A cell is 6 x 9 pixels: neighbours differ by no more than the slope between two cells.
    assert masks.diff(dim=1).abs().max() <= 1 / 6 + 1e-5
    assert masks.diff(dim=2).abs().max() <= 1 / 9 + 1e-5


class OnePixel(nn.Module):
    """The logit of class 1 is the red value of one pixel."""

    def __init__(self, row, column):
        super().__init__()
        self.row, self.column = row, column
        self.fc = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[0.0], [1.0]]))

    def forward(self, x):
        return self.fc(x[:, :1, self.row, self.column])


def shared_cells(length, cells, pixel):
    """Mean over the shifts of the sum over cells of (share of the cell at each place) x (its share at ``pixel``)."""
    cell = -(-length // cells)
    total = np.zeros(length)
    for shift in range(cell):
        places = (np.arange(length) + shift + 0.5) * cells / ((cells + 1) * cell) - 0.5
        places = places.clip(0, cells - 1)
        shares = np.maximum(1 - np.abs(places[:, None] - np.arange(cells)), 0)
        total += shares @ shares[pixel] / cell
    return total


def test_rise_of_one_pixel_is_the_covariance_of_the_masks() -> None:
    size, keep, masks = (32, 48), 0.4, 4000
    model = classifier(OnePixel(13, 20), size=size)
    method = Rise(masks=masks, cells=4, keep=keep, reference="black", output="logit")
    found = method(model, torch.ones(1, 3, *size), torch.tensor([1]))[0].array
    # Cells are independent, so two pixels' masks have the mean product keep^2 + keep (1 - keep) x (shared cells).
    shared = np.outer(shared_cells(32, 4, 13), shared_cells(48, 4, 20))
    expected = keep + (1 - keep) * shared
    # A product of two masks lies in [0, 1], so its deviation is at most 1/2: five standard errors.
    assert np.abs(found - expected).max() < 5 * 0.5 / keep / masks**0.5
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95


def test_rise_with_everything_shown_is_the_output() -> None:
    model, x = classifier(seeded(Cnn)), pictures()
    with torch.no_grad():
        expected = model.module(x).softmax(1).gather(1, TARGETS[:, None])
    found = arrays(Rise(masks=3, keep=1.0), model, x)
    assert torch.allclose(found, expected[..., None].expand_as(found), atol=1e-6)


def test_blur_equals_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    x = pictures(1).double()
    for sigma in (0.7, 3.0):
        expected = np.stack([gaussian_filter(c, sigma, mode="nearest", truncate=3.0) for c in x[0].numpy()])
        # Radii of whole pixels: where 3 sigma is none, ours is the next larger one.
        assert np.abs(blur(x, sigma)[0].numpy() - expected).max() < 4e-3
    assert torch.equal(blur(x, 0.0), x)
    flat = torch.full((1, 3, 5, 4), 0.25)
    assert torch.allclose(blur(flat, 2.0), flat, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Occlusion(window=0), "window must be a whole number of at least 1"),
        (Occlusion(window=13), "at most 12; it is 13"),
        (Occlusion(window=4, stride=5), "stride must be a number of at least 1 and at most 4; it is 5"),
        (Occlusion(reference="noise"), "reference"),
        (Occlusion(output="score"), "logit"),
        (Rise(masks=0), "masks"),
        (Rise(keep=0), "keep must be a number above 0 and at most 1; it is 0"),
        (Rise(cells=1), "cells"),
        (Rise(output="logits"), "Did you mean 'logit'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(method, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method(classifier(Linear()), pictures(), TARGETS)


@pytest.mark.parametrize("method", [Occlusion(window=5), Rise(masks=40, cells=4)], ids=repr)
def test_the_contract_is_kept(method) -> None:
    check_map_method(method, classifier(seeded(Cnn)), images=pictures(3))
