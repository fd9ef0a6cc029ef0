import pytest
import timm
import torch
import torchvision
import transformers
from map_networks import Cnn, classifier, pictures, seeded
from torch import nn
from torch.nn import functional

from whylens.checks import check_map_method
from whylens.errors import InputError, ModelError
from whylens.maps import GradCam, LayerCam
from whylens.maps.cam import find_layer

TARGETS = torch.tensor([1, 0])


def arrays(method, model, x, **options):
    return torch.stack([torch.from_numpy(m.array) for m in method(model, x, TARGETS, **options)])


def enlarged(small, x):
    return functional.interpolate(small[:, None].float(), size=x.shape[-2:], mode="bilinear")[:, 0]


@pytest.fixture(scope="module")
def cnn():
    return seeded(lambda: Cnn(pool=True)).eval()


def test_grad_cam_before_an_average_is_the_weighted_sum_of_the_features(cnn) -> None:
    x = pictures()
    with torch.no_grad():
        features = cnn.act2(cnn.conv2(cnn.pool(cnn.act1(cnn.conv1(x)))))
    positions = features.shape[2] * features.shape[3]
    expected = torch.einsum("bdhw,bd->bhw", features, cnn.fc.weight[TARGETS].detach()) / positions
    assert torch.allclose(arrays(GradCam(signed=True), classifier(cnn), x), enlarged(expected, x), rtol=1e-4, atol=1e-7)
    assert torch.allclose(arrays(GradCam(), classifier(cnn), x), enlarged(expected.clamp(min=0), x), atol=1e-7)


@pytest.mark.parametrize("layer", ["conv1", "pool", "conv2"])
def test_both_maps_at_any_layer_equal_the_formulas(cnn, layer: str) -> None:
    x = pictures().double()
    parts = [cnn.conv1, cnn.act1, cnn.pool, cnn.conv2, cnn.act2]
    cut = [*parts].index(getattr(cnn, layer)) + 1
    cnn.double()
    try:
        a = nn.Sequential(*parts[:cut])(x).detach().requires_grad_(True)
        logits = cnn.fc(nn.Sequential(*parts[cut:])(a).mean((2, 3)))
        (g,) = torch.autograd.grad(logits.gather(1, TARGETS[:, None]).sum(), a)
        a = a.detach()
        grad_cam = torch.zeros(2, *a.shape[2:], dtype=torch.float64)
        layer_cam = torch.zeros_like(grad_cam)
        for channel in range(a.shape[1]):
            grad_cam += g[:, channel].mean((1, 2), keepdim=True) * a[:, channel]
            layer_cam += g[:, channel].clamp(min=0) * a[:, channel]
        for kind, expected in ((GradCam, grad_cam), (LayerCam, layer_cam)):
            found = arrays(kind(layer=layer), classifier(cnn), x.float())
            assert torch.allclose(found, enlarged(expected.clamp(min=0), x), rtol=1e-4, atol=1e-7)
    finally:
        cnn.float()


def test_a_layer_that_the_next_one_changes_in_place_is_taken_before_the_change(cnn) -> None:
    x = pictures()
    changed = seeded(lambda: Cnn(lambda: nn.ReLU(inplace=True), pool=True))
    changed.load_state_dict(cnn.state_dict())
    for kind in (GradCam, LayerCam):
        expected = arrays(kind(layer="conv2", signed=True), classifier(cnn), x)
        assert torch.allclose(arrays(kind(layer="conv2", signed=True), classifier(changed), x), expected, atol=1e-7)


def test_contrasts_are_differences_of_signed_maps(cnn) -> None:
    x, model, method = pictures(), classifier(cnn), GradCam(signed=True)
    against = arrays(method, model, x, contrasts=torch.tensor([2, 2]))
    other = torch.stack([torch.from_numpy(m.array) for m in method(model, x, torch.tensor([2, 2]))])
    assert torch.allclose(against, arrays(method, model, x) - other, atol=1e-6)


def _vit(name="vit_tiny_patch16_224", **settings):
    return timm.create_model(name, num_classes=3, depth=2, embed_dim=24, num_heads=2, **settings)


def _hf_vit():
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=64, num_labels=3
    )
    return transformers.ViTForImageClassification(config)


def _hf_resnet():
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    )


def _swin():
    return torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=3)


def _convnext():
    return timm.create_model("convnext_atto", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))


ZOO = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=3), (64, 96), "layer4", (2, 3)),
    "mobilenet_v3": (lambda: torchvision.models.mobilenet_v3_small(num_classes=3), (64, 64), "features", (2, 2)),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=3), (64, 96), "features", (8, 12)),
    "convnext": (_convnext, (64, 64), "norm_pre", (2, 2)),
    "swin": (_swin, (64, 64), "permute", (8, 8)),
    "hf resnet": (_hf_resnet, (64, 64), "resnet", (8, 8)),
    "vit": (_vit, (64, 64), "blocks.1.norm1", (4, 4)),
    "vit, not square": (_vit, (48, 80), "blocks.1.norm1", (3, 5)),
    "vit, mean of tokens": (lambda **k: _vit(global_pool="avg", **k), (64, 64), "blocks", (4, 4)),
    "vit, registers": (
        lambda **k: _vit("vit_medium_patch16_reg4_gap_256", **k),
        (64, 64),
        "blocks",
        (4, 4),
    ),
    "hf vit": (_hf_vit, (64, 64), "vit.layers.1.layernorm_before", (4, 4)),
}


@pytest.mark.parametrize("name", ZOO)
def test_the_layer_is_found(name: str) -> None:
    make, size, layer, grid = ZOO[name]
    settings = {"img_size": size} if name.startswith("vit") else {}
    model = classifier(seeded(lambda: make(**settings)), size=size)
    x = pictures(2, size=size)
    assert find_layer(model, size) == layer
    for method in (GradCam(signed=True), LayerCam(signed=True)):
        found = method(model, x, TARGETS)
        assert f"Layer: {layer}, {grid[0]} x {grid[1]} positions." in found[0].notes
        named = type(method)(layer=layer, signed=True)(model, x, TARGETS)
        assert (found[0].array == named[0].array).all()
        assert found[0].array.std() > 0


def test_features_with_positions_are_the_layer() -> None:
    model = classifier(seeded(lambda: torchvision.models.squeezenet1_1(num_classes=3)), size=(64, 96))
    assert model.spatial
    found = GradCam(signed=True)(model, pictures(1, size=(64, 96)), torch.tensor([0]))[0]
    assert f"Layer: {model.features_name}, 3 x 5 positions." in found.notes
    by_name = GradCam(layer="features", signed=True)(model, pictures(1, size=(64, 96)), torch.tensor([0]))[0]
    assert abs(found.array - by_name.array).max() < 1e-5


class Spare(Cnn):
    """A layer that is never called, and one whose output goes nowhere."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Conv2d(3, 4, 1)
        self.aside = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        self.aside(x)
        return super().forward(x)


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("conv3", InputError, "Did you mean 'conv"),
        ("fc", InputError, "has no positions"),
        ("unused", InputError, "not called in a forward pass"),
        ("aside", ModelError, "does not depend on the layer 'aside'"),
        (3, InputError, "layer must be the name"),
    ],
)
def test_layers_that_cannot_be_used_are_refused(layer, error, message: str) -> None:
    with pytest.raises(error, match=message):
        GradCam(layer=layer)(classifier(seeded(Spare)), pictures(), TARGETS)


def test_a_network_without_positions_is_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 16, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ModelError, match="Methods that apply: integrated_gradients"):
        GradCam()(classifier(flat), pictures(), TARGETS)


@pytest.mark.parametrize("method", [GradCam(), LayerCam(), LayerCam(layer="conv1")], ids=repr)
def test_the_contract_is_kept(method, cnn) -> None:
    check_map_method(method, classifier(cnn), images=pictures(3))
