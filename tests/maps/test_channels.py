"""Networks that read grey pictures, or any other number of channels, under the map methods and the metrics."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from whylens import Classifier, get_method
from whylens.errors import InputError, PictureError
from whylens.metrics import Curve, score_maps

SIZE = (12, 16)
METHODS = (
    "gradient",
    "input_x_gradient",
    "integrated_gradients",
    "smoothgrad",
    "guided_backprop",
    "deeplift",
    "grad_cam",
    "layer_cam",
    "occlusion",
    "edges",
    "random_map",
)
LENGTHS = {
    "rise": {"masks": 40},
    "igos_pp": {"iterations": 2, "points": 2},
    "extremal_perturbation": {"iterations": 4},
    "fei": {"iterations": 4},
}


def network(channels):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def classifier_of(channels):
    share = tuple(0.3 + 0.1 * c for c in range(channels))
    return Classifier(network(channels), size=SIZE, mean=share, std=share)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("name", [*METHODS, *LENGTHS])
def test_every_method_maps_any_number_of_channels(name, channels):
    classifier = classifier_of(channels)
    x = torch.rand((2, channels, *SIZE), generator=torch.Generator().manual_seed(channels))
    maps = get_method(name).factory(**LENGTHS.get(name, {}))(classifier, x, seed=0)
    assert [m.array.shape for m in maps] == [SIZE, SIZE]
    assert all(np.isfinite(m.array).all() for m in maps)


def test_paper_preset_draws_a_value_for_every_channel():
    maps = get_method("fei").factory(preset="paper", iterations=2)(classifier_of(2), torch.rand((1, 2, *SIZE)), seed=0)
    assert maps[0].array.shape == SIZE


@pytest.mark.parametrize("name", ["gradient", "integrated_gradients", "occlusion", "grad_cam"])
def test_a_grey_network_gets_the_map_of_its_colour_twin(name):
    """Grey pictures in three equal channels, through weights of a third each, are the same network."""
    grey = network(1)
    colour = network(3)
    state = grey.state_dict()
    state["0.0.weight"] = state["0.0.weight"].expand(-1, 3, -1, -1) / 3
    colour.load_state_dict(state)
    x = torch.rand((1, 1, *SIZE), generator=torch.Generator().manual_seed(3))
    method = get_method(name).factory()
    one = method(Classifier(grey, size=SIZE, mean=(0.4,), std=(0.2,)), x, torch.tensor([1]))[0].array
    three = method(
        Classifier(colour, size=SIZE, mean=(0.4,) * 3, std=(0.2,) * 3), x.expand(-1, 3, -1, -1), torch.tensor([1])
    )[0].array
    # Of the gradient each colour channel has a third, and the largest of equal ones is taken.
    scale = np.abs(one).max() / np.abs(three).max()
    assert np.allclose(one, scale * three, atol=1e-5 * np.abs(one).max())
    assert np.isclose(scale, 1, atol=1e-4) or np.isclose(scale, 3, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 5])
def test_curves_and_activations_are_measured(channels):
    classifier = classifier_of(channels)
    picture = torch.rand((channels, *SIZE), generator=torch.Generator().manual_seed(1))
    curves = [
        Curve.named(f"{game}-{kind}")
        for game in ("insertion", "deletion")
        for kind in ("zero", "mean", "blur", "noise")
    ]
    found = score_maps(classifier, picture, torch.rand(2, *SIZE), 0, curves=curves, layers=("0",))
    assert all(np.isfinite(list(s.values.values())).all() for s in found)
    assert len([k for k in found[0].values if k.startswith(("insertion", "deletion"))]) == 8


# -- pictures -----------------------------------------------------------------------------------------------------------


def test_a_grey_network_reads_the_brightness_of_colours(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = tmp_path / "picture.png"
    Image.fromarray(values).save(file)
    classifier = classifier_of(1)
    found = classifier.preprocess(file)
    expected = np.asarray(Image.fromarray(values).convert("L").resize((16, 12), Image.Resampling.BILINEAR)) / 255
    assert found.shape == (1, *SIZE)
    assert np.allclose(found[0].numpy(), expected, atol=1e-6)
    assert torch.equal(found, classifier.preprocess(np.asarray(Image.fromarray(values))))


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_arrays_of_other_channels_are_resized_channel_by_channel(fit):
    five = Classifier(network(5), size=SIZE, mean=(0.5,) * 5, std=(0.2,) * 5, fit=fit)
    three = Classifier(network(3), size=SIZE, mean=(0.5,) * 3, std=(0.2,) * 3, fit=fit)
    values = np.random.default_rng(1).integers(0, 256, (40, 31, 5), dtype=np.uint8)
    found = five.preprocess(values)
    assert found.shape == (5, *SIZE)
    # Up to the rounding of each colour to 8 bits.
    assert torch.allclose(found[:3], three.preprocess(np.ascontiguousarray(values[:, :, :3])), atol=1.01 / 255)
    assert torch.allclose(found, five.preprocess(values.astype(np.float64) / 255), atol=1e-6)


def test_what_has_not_the_networks_channels_is_refused():
    classifier = classifier_of(5)
    for picture in (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), Image.new("RGB", (8, 8))):
        with pytest.raises(PictureError, match="reads 5 channels"):
            classifier.preprocess(picture)
    with pytest.raises(PictureError, match=r"float in \[0, 1\]"):
        classifier.preprocess(np.full((8, 8, 5), 3.0))
    with pytest.raises(InputError, match=r"\(B, 5, H, W\)"):
        classifier.logits(torch.zeros(1, 3, *SIZE))
    with pytest.raises(InputError, match=r"\(B, 5, H, W\)"):
        get_method("gradient").factory()(classifier, torch.zeros(1, 3, *SIZE))
    with pytest.raises(InputError, match="mean has 2 channels and std 1"):
        Classifier(network(2), size=SIZE, mean=(0.5, 0.5), std=(0.2,))


def test_thumbnails_of_grey_pictures_are_grey():
    from whylens.lens.atlas_pictures import decode_picture, encode_thumbnail

    shown = decode_picture(encode_thumbnail(torch.full((1, 20, 30), 0.5)), "RGB")
    assert shown.shape == (20, 30, 3)
    assert np.abs(shown.astype(int) - 128).max() <= 2
