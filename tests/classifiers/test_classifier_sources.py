import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import whylens.classifiers.sources as sources
from whylens.classifiers import (
    Classifier,
    builtin_names,
    list_models,
    list_sources,
    load_builtin,
    load_classifier,
    register_source,
)
from whylens.errors import InputError, ModelError, SplitError, StoreError
from whylens.networks import SmallResNet


class NotTensors:
    pass


@pytest.fixture(scope="module")
def squeezenet():
    from torchvision import models

    torch.manual_seed(0)
    return models.squeezenet1_1(num_classes=7).eval()


def spec(path, model="torchvision:squeezenet1_1"):
    return f"file:{path}@{model}"


def same_logits(classifier, module):
    x = torch.rand(2, 3, *classifier.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(classifier.logits(x), module(classifier.preprocessing.normalise(x)))


@pytest.mark.parametrize(
    "wrapping",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: {"module." + k: v for k, v in s.items()},
        lambda s: {"state_dict": {"model._orig_mod." + k: v for k, v in s.items()}},
    ],
    ids=["plain", "state_dict", "model", "data parallel", "lightning and compiled"],
)
def test_common_wrappings_come_off_and_classes_are_read_from_the_weights(tmp_path, squeezenet, wrapping):
    path = tmp_path / "gewichte é@1.pt"
    torch.save(wrapping(squeezenet.state_dict()), path)
    c = load_classifier(spec(path), size=64)
    assert same_logits(c, squeezenet)
    assert (c.source, c.name) == (spec(path), spec(path))
    assert c.class_names[:2] == ("class 0", "class 1")
    assert load_classifier(spec(path), size=64, class_names=list("abcdefg")).class_names == tuple("abcdefg")


def test_half_precision_safetensors_are_read_in_fp32(tmp_path, squeezenet):
    path = tmp_path / "w.safetensors"
    save_file({k: v.half() for k, v in squeezenet.state_dict().items()}, path)
    c = load_classifier(spec(path), size=64)
    assert c.dtype == torch.float32
    assert torch.equal(c.module.classifier[1].weight, squeezenet.classifier[1].weight.half().float())


def test_checkpoints_that_do_not_fit_list_what_is_wrong(tmp_path, squeezenet):
    state = dict(squeezenet.state_dict())
    removed = state.pop("features.0.weight")
    torch.save({**state, "extra.weight": removed}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"missing: features\.0\.weight.*unexpected: extra\.weight"):
        load_classifier(spec(tmp_path / "a.pt"))
    torch.save({**squeezenet.state_dict(), "features.3.squeeze.weight": torch.zeros(2, 2)}, tmp_path / "b.pt")
    with pytest.raises(ModelError, match=r"features\.3\.squeeze\.weight \(2, 2\) instead of \(16, 64, 1, 1\)"):
        load_classifier(spec(tmp_path / "b.pt"))
    torch.save({"epoch": 1}, tmp_path / "c.pt")
    with pytest.raises(ModelError, match=r"no table of weights.*'epoch'"):
        load_classifier(spec(tmp_path / "c.pt"))
    bad = {**squeezenet.state_dict()}
    bad["features.0.bias"] = torch.full_like(bad["features.0.bias"], torch.nan)
    torch.save(bad, tmp_path / "d.pt")
    with pytest.raises(ModelError, match=r"'features\.0\.bias' are NaN"):
        load_classifier(spec(tmp_path / "d.pt"))


def test_pickles_with_code_are_never_run(tmp_path, squeezenet):
    torch.save(squeezenet, tmp_path / "whole.pt")
    torch.save({"state_dict": {}, "config": NotTensors()}, tmp_path / "object.pt")
    for name in ("whole.pt", "object.pt"):
        with pytest.raises(ModelError, match="needs code"):
            load_classifier(spec(tmp_path / name))


def test_damaged_and_absent_files(tmp_path, squeezenet):
    save_file(squeezenet.state_dict(), tmp_path / "good.safetensors")
    data = (tmp_path / "good.safetensors").read_bytes()
    for name, content in {"cut.safetensors": data[:5000], "zero.pt": b"", "text.pt": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises((StoreError, ModelError)):
            load_classifier(spec(tmp_path / name))
    with pytest.raises(InputError, match="no checkpoint"):
        load_classifier(spec(tmp_path / "nothing.pt"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "SOURCE:NAME"),
        ("torchvision:", "SOURCE:NAME"),
        ("torchvison:resnet50", "'torchvision'"),
        ("torchvision:resnet51", "Did you mean .*resnet50"),
        ("torchvision:resnet50/IMAGENET1K_V3", "IMAGENET1K_V[12]"),
        ("timm:vit_tiny_patch16_225", "vit_tiny_patch16_224"),
        ("builtin:none", "built-in classifier"),
        ("file:weights.pt", "file:CHECKPOINT@SOURCE:NAME"),
        ("file:weights.pt@keras:vgg", "source of architectures 'keras'"),
        ("hf:./no/such/folder", "no folder"),
    ],
)
def test_unknown_names_are_explained(name, message):
    with pytest.raises(InputError, match=message):
        load_classifier(name)


def test_bad_options_are_explained():
    with pytest.raises(InputError, match="string"):
        load_classifier(3)
    with pytest.raises(InputError, match="at least one name"):
        load_classifier("torchvision:squeezenet1_1", pretrained=False, class_names=[])
    with pytest.raises(InputError, match="at least 1"):
        load_classifier("torchvision:squeezenet1_1", pretrained=False, size=0)
    with pytest.raises(InputError, match=r"'featurs'.*'features'"):
        load_classifier("torchvision:squeezenet1_1", pretrained=False, size=64, features="featurs")
    with pytest.raises(SplitError, match=r"features\.3\.squeeze_activation|bypasses"):
        load_classifier("torchvision:squeezenet1_1", pretrained=False, size=64, features="features.3.expand1x1")


def test_torchvision_metadata_and_random_weights():
    c = load_classifier("torchvision:mobilenet_v3_small", pretrained=False)
    assert (c.size, c.preprocessing.resize, c.preprocessing.interpolation) == ((224, 224), (256, 256), "bilinear")
    assert (len(c.class_names), c.class_names[0], c.class_names[999]) == (1000, "tench", "toilet tissue")
    assert c.source is None
    small = load_classifier("torchvision:vit_b_32", pretrained=False, size=64, class_names=list("abc"))
    assert (small.size, small.preprocessing.resize, small.width) == ((64, 64), (73, 73), 768)
    assert small.class_names == ("a", "b", "c")


def test_timm_metadata_and_random_weights():
    pytest.importorskip("timm")
    c = load_classifier("timm:vit_tiny_patch16_224", pretrained=False)
    assert (c.preprocessing.resize, c.preprocessing.interpolation) == ((248, 248), "bicubic")
    assert c.preprocessing.mean == (0.5, 0.5, 0.5)
    assert c.class_names[0] == "tench"
    assert len(set(c.class_names)) >= 998
    small = load_classifier("timm:vit_tiny_patch16_224", pretrained=False, size=64, class_names=["a", "b"])
    assert small.at("blocks.5").layout.grid == (4, 4)
    assert small.at("blocks.5").layout.prefix == 1
    assert load_classifier("timm:resnet10t", pretrained=False, size=64).size == (64, 64)


def test_hugging_face_folders(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        id2label={0: "katt", 1: "Hündchen", 2: "ant"},
    )
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    c = load_classifier(f"hf:{tmp_path}")
    assert c.class_names == ("katt", "Hündchen", "ant")
    assert c.size == (32, 32)
    assert "No image processor" in c.preprocessing.note
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(c.preprocessing.normalise(x)).logits
    assert torch.allclose(c.logits(x), expected, atol=1e-6)
    assert torch.allclose(c.head(c.features(x)), expected, atol=1e-6)
    assert c.affine_head is not None
    assert any(c.at(name).layout.grid == (4, 4) for name in c.layer_names())

    transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1] * 3, image_std=[0.3] * 3
    ).save_pretrained(tmp_path)
    again = load_classifier(f"hf:{tmp_path}")
    assert (again.preprocessing.mean, again.preprocessing.fit) == ((0.1, 0.1, 0.1), "squash")
    assert again.preprocessing.note == ""


def test_hugging_face_backbones_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="classifier"):
        load_classifier(f"hf:{tmp_path}")
    with pytest.raises(ModelError, match="no logits"):
        Classifier(transformers.ViTModel(config), size=16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        load_classifier(f"hf:{tmp_path / 'empty'}")


@pytest.fixture
def builtin_root(tmp_path):
    torch.manual_seed(0)
    module = SmallResNet(3, (4, 6), (1,)).eval()
    folder = tmp_path / "data" / "tiny"
    folder.mkdir(parents=True)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()},
        folder / "classifier.safetensors",
    )
    card = {
        "architecture": "small_resnet",
        "arguments": {"classes": 3, "widths": [4, 6], "blocks": [1]},
        "class_names": ["ant", "bee", "cat"],
        "size": 16,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
    }
    (folder / "classifier.json").write_text(json.dumps(card), encoding="utf-8")
    (tmp_path / "data" / "no-classifier").mkdir()
    return tmp_path / "data", module


def test_builtin_folders(builtin_root):
    root, module = builtin_root
    assert builtin_names(root) == ["tiny"]
    c = load_builtin("tiny", root=root)
    assert (c.class_names, c.size, c.width, c.dtype) == (("ant", "bee", "cat"), (16, 16), 6, torch.float32)
    assert same_logits(c, module.half().float())
    assert c.fingerprint == load_builtin("tiny", root=root).fingerprint
    assert load_builtin("tiny", root=root, features="stages").spatial
    with pytest.raises(InputError, match="'tiny'"):
        load_builtin("tyni", root=root)


def test_builtin_through_its_source_and_as_an_architecture(builtin_root, monkeypatch):
    from whylens.classifiers import builtin

    root, _ = builtin_root
    monkeypatch.setattr(builtin, "DATA", root)
    c = load_classifier("builtin:tiny")
    assert (c.name, c.source) == ("builtin:tiny", "builtin:tiny")
    assert list_models("builtin:*") == {"builtin": ["tiny"]}
    torch.save(SmallResNet(5, (4, 6), (1,)).state_dict(), root / "five.pt")
    assert len(load_classifier(spec(root / "five.pt", "builtin:tiny")).class_names) == 5


def test_damaged_builtin_folders(builtin_root):
    root, _ = builtin_root
    path = root / "tiny" / "classifier.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    for content in ("{", json.dumps({**card, "architecture": "vgg"}), json.dumps({"size": 3})):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(StoreError, match=r"classifier\.json"):
            load_builtin("tiny", root=root)
    path.write_text(json.dumps(card), encoding="utf-8")
    (root / "tiny" / "classifier.safetensors").unlink()
    with pytest.raises(StoreError, match="no weights"):
        load_builtin("tiny", root=root)


def test_sources_can_be_added(monkeypatch):
    list_sources()
    monkeypatch.setattr(sources, "_sources", dict(sources._sources))

    @register_source("mine", names=lambda: ["one", "two"])
    def load_mine(name, options):
        torch.manual_seed(0)
        net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        return Classifier(net, size=8, name=f"mine:{name}", class_names=options.class_names)

    assert "mine" in list_sources()
    assert list_models("t*")["mine"] == ["two"]
    assert load_classifier("mine:one", class_names=["x", "y"]).class_names == ("x", "y")
    with pytest.raises(InputError, match="registered already"):
        register_source("mine")(lambda name, options: None)


def test_models_are_listed_by_wildcard():
    assert list_models("torchvision:squeezenet*") == {"torchvision": ["squeezenet1_0", "squeezenet1_1"]}
    assert "resnet18" in list_models("resnet18")["torchvision"]
    assert list_models("no such model") == {}
