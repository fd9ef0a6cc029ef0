import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from whylens.classifiers.preprocessing import Preprocessing, from_hf, from_timm, from_torchvision
from whylens.errors import InputError

ONE_LEVEL = 1 / 255 + 1e-6


def photo(width=317, height=211, seed=0):
    """Smooth shapes, hard edges and fine grain: a stand-in for a photograph."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([128 + 100 * np.sin(x / 17 + c) * np.cos(y / (11 + 5 * c)) for c in range(3)], -1)
    base[height // 3 : height // 2, width // 4 : width // 2] = (240, 30, 60)
    base += rng.normal(0, 12, base.shape)
    image = Image.fromarray(base.clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.SMOOTH)


def undone(tensor, mean, std):
    return tensor * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)


@pytest.mark.parametrize("size", [(317, 211), (211, 317), (64, 64), (500, 90), (223, 1000)])
@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet50", "efficientnet_b3", "swin_v2_t", "vit_l_16"])
def test_equals_torchvision(name, size):
    from torchvision import models

    transforms = models.get_model_weights(name).DEFAULT.transforms()
    ours = from_torchvision(transforms)
    picture = photo(*size)
    theirs = undone(transforms(picture), transforms.mean, transforms.std)
    assert float((ours(picture) - theirs).abs().max()) <= ONE_LEVEL


@pytest.mark.parametrize("size", [(317, 211), (211, 317), (500, 90), (40, 60)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("interpolation", "fraction", "shape"),
    [("bicubic", 0.9, (3, 224, 224)), ("bilinear", 0.875, (3, 96, 96)), ("bicubic", 1.0, (3, 64, 96))],
)
def test_equals_timm(size, mode, interpolation, fraction, shape):
    timm_data = pytest.importorskip("timm.data")
    config = {
        "input_size": shape,
        "interpolation": interpolation,
        "crop_pct": fraction,
        "crop_mode": mode,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    theirs = timm_data.create_transform(**config, is_training=False)(photo(*size))
    ours = from_timm(config)
    assert ours(photo(*size)).shape == shape
    difference = (ours(photo(*size)) - undone(theirs, config["mean"], config["std"])).abs()
    assert float(difference.max()) <= ONE_LEVEL


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("ViTImageProcessor", {"size": {"height": 64, "width": 64}}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}, "crop_pct": 0.875}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
        ("DeiTImageProcessor", {"size": {"height": 72, "width": 72}, "crop_size": {"height": 64, "width": 64}}),
        ("BeitImageProcessor", {"size": {"height": 64, "width": 64}, "do_center_crop": False}),
        ("BitImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}),
        ("LevitImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        ("PoolFormerImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        ("MobileNetV2ImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}),
        ("MobileViTImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}),
        ("EfficientNetImageProcessor", {"size": {"height": 64, "width": 64}}),
        (
            "EfficientNetImageProcessor",
            {"size": {"height": 64, "width": 64}, "rescale_offset": True, "rescale_factor": 1 / 127.5},
        ),
        ("SiglipImageProcessor", {"size": {"height": 64, "width": 64}}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
    ],
)
def test_equals_hugging_face_in_the_network_s_own_input(kind, arguments):
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, kind)(**arguments)
    ours = from_hf(processor.to_dict(), 224)
    picture = photo()
    theirs = processor(images=picture, return_tensors="pt")["pixel_values"][0].float()
    mine = ours.normalise(ours(picture)[None])[0]
    assert mine.shape == theirs.shape
    # Their torchvision backend rounds its antialiased filter differently from PIL, so a few values differ by two levels.
    levels = (mine - theirs).abs() * 255 * torch.tensor(ours.std).view(3, 1, 1)
    assert float(levels.max()) <= 2.5
    assert float(levels.mean()) < 0.35


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (3, 700), (2, 2)])
def test_tiny_and_extreme_pictures_come_out_at_size(size, fit):
    ours = Preprocessing(size=(32, 32), resize=(36, 36), fit=fit, interpolation="bicubic")
    x = ours(Image.new("RGB", size, (255, 0, 51)))
    assert x.shape == (3, 32, 32)
    # The picture's one colour, across the whole input or, padded, at least in its middle two rows or columns.
    hit = (x - torch.tensor([1.0, 0.0, 0.2]).view(3, 1, 1)).abs().amax(0) < 1e-6
    assert hit.all() if fit != "pad" else hit[15:17].any(0).all() or hit[:, 15:17].any(1).all()


def test_padding_has_the_mean_colour():
    x = Preprocessing(size=(20, 20), resize=(20, 20), fit="pad")(Image.new("RGB", (40, 20), (255, 255, 255)))
    assert torch.equal(x[:, 10], torch.ones(3, 20))
    assert torch.allclose(x[:, 0, 0], torch.tensor([124, 116, 104]) / 255)


def test_normalise_by_hand():
    p = Preprocessing(size=(1, 1), resize=(1, 1), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    x = torch.tensor([0.6, 0.7, 0.9]).view(1, 3, 1, 1)
    assert torch.allclose(p.normalise(x).flatten(), torch.tensor([1.0, 2.0, 0.3]))
    flipped = Preprocessing(size=(1, 1), resize=(1, 1), mean=(0, 0, 0), std=(1, 1, 1), channels="BGR")
    assert torch.equal(flipped.normalise(x).flatten(), torch.tensor([0.9, 0.7, 0.6]))


def test_another_size_keeps_the_proportion():
    p = Preprocessing(size=(224, 224), resize=(256, 256)).at_size((112, 112))
    assert (p.size, p.resize) == ((112, 112), (128, 128))


@pytest.mark.parametrize(
    "bad",
    [
        {"size": (0, 4)},
        {"resize": (4, 0)},
        {"std": (0, 1, 1)},
        {"mean": (float("nan"), 0, 0)},
        {"interpolation": "cubic"},
        {"fit": "stretch"},
        {"channels": "GBR"},
        {"mean": (0.5,)},
    ],
)
def test_settings_that_cannot_be_used_are_refused(bad):
    with pytest.raises(InputError):
        Preprocessing(**{"size": (4, 4), "resize": (4, 4), **bad})
