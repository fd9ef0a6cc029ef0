import pytest
import torch
from torch.nn.functional import normalize

from whylens.encoders import load_encoder
from whylens.errors import InputError, ModelError
from whylens.metrics.backbones import as_grid, encoder_backbone, layer_backbone, load_backbone, timm_backbone


def pictures(side=64, count=2):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_the_mean_of_the_built_in_encoders_cells_is_its_embedding():
    encoder = load_encoder("builtin:tiny")
    x = pictures(encoder.size[0])
    cells = load_backbone("builtin:tiny")(x)
    assert cells.ndim == 4
    assert min(cells.shape[2:]) > 1
    found = normalize(cells.mean((2, 3)), dim=1)
    assert torch.allclose(found, encoder.encode_images(x), atol=1e-5)
    assert load_backbone("builtin:tiny")(pictures(100)).shape == cells.shape


def test_dinov2_through_timm_gives_the_patch_tokens_after_the_norm():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    backbone = timm_backbone(size=56, pretrained=False)
    found = backbone(pictures(56, 1))
    assert found.shape == (1, 384, 4, 4)
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=False, num_classes=0, img_size=56).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        tokens = model.forward_features((pictures(56, 1) - mean) / std)
    # One class token in front; rows of the grid one after another.
    assert torch.allclose(found[0, :, 1, 2], tokens[0, 1 + 4 + 2], atol=1e-5)


def test_a_convolutional_network_of_timm_and_pictures_of_another_size():
    pytest.importorskip("timm")
    backbone = load_backbone("timm:test_resnet", pretrained=False)
    assert backbone(pictures(40, 1)).ndim == 4


def test_any_layer_of_a_classifier(classifier):
    backbone = layer_backbone(classifier, "stages")
    x = pictures(16)
    assert torch.equal(backbone(x), classifier.at("stages").features(x))
    with pytest.raises(InputError, match="no positions"):
        layer_backbone(classifier)


def test_grids_of_tokens_and_of_maps_with_channels_last():
    tokens = torch.arange(2 * 7 * 3.0).view(2, 7, 3)
    grid = as_grid(tokens, (28, 42), prefix=1)
    assert grid.shape == (2, 3, 2, 3)
    assert torch.equal(grid[:, :, 1, 0], tokens[:, 4])
    last = torch.rand(1, 4, 4, 9)
    assert torch.equal(as_grid(last, (32, 32)), last.movedim(-1, 1))
    first = torch.rand(1, 9, 4, 4)
    assert torch.equal(as_grid(first, (32, 32)), first)
    with pytest.raises(ModelError, match="no grid"):
        as_grid(torch.rand(1, 7, 3), (28, 28))
    with pytest.raises(ModelError, match="shape"):
        as_grid(torch.rand(1, 7), (28, 28))


def test_bad_names_encoders_and_pictures_are_refused(monkeypatch):
    with pytest.raises(InputError, match="dinov2"):
        load_backbone("dino")
    with pytest.raises(InputError, match="Only built-in encoders"):
        encoder_backbone(type("Other", (), {"name": "open_clip:X"})())
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        load_backbone("builtin:tiny")(torch.rand(3, 8, 8))
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match="could not be loaded"):
        timm_backbone("no_such_model", pretrained=False)
