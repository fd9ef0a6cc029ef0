import json

import pytest
import torch
from safetensors.torch import save_file

from whylens.bcos import (
    BcosDenseNet,
    BcosResNet,
    BcosViT,
    SmallBcosResNet,
    bcosify,
    build_network,
    calibrate_norms,
    last_layer,
    pixel_contributions,
)
from whylens.bcos.resnet import BasicBlock
from whylens.classifiers import Classifier, list_models, load_builtin, load_classifier
from whylens.classifiers.classifier import fingerprint
from whylens.errors import InputError, ModelError
from whylens.networks import SmallResNet, initialise


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def published(monkeypatch):
    """Stands in for the network: any address gives the weights of a network with random ones."""
    asked = []

    def download(address, **options):
        asked.append((address, options))
        torch.manual_seed(3)
        return build_network("resnet18").state_dict()

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    return asked


def noisy(network):
    """Calibrated so that logits are of a visible size."""
    network.train()
    with torch.no_grad():
        for seed in range(10):
            network(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))
    return network.eval()


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: BcosResNet(BasicBlock, [1, 1], 4, inplanes=8, small=True), (2, 16, 16, 16)),
        (lambda: SmallBcosResNet(4, (4, 6, 8), (0, 1)), (2, 8, 8, 8)),
        (lambda: BcosDenseNet(4, [2, 2], 8, 4), (2, 16, 4, 4)),
        (lambda: BcosViT(patch=4, dim=16, depth=1, heads=2, hidden=24, classes=4, stem=(8, 16)), (2, 16)),
    ],
    ids=["resnet", "small resnet", "densenet", "vit"],
)
def test_networks_split_at_the_input_of_the_classifier(make, shape, pictures):
    torch.manual_seed(0)
    c = Classifier(noisy(make()), size=32, mean=(0, 0, 0), std=(1, 1, 1), link="sigmoid")
    z = c.features(pictures)
    assert z.shape == shape
    assert torch.allclose(c.head(z), c.logits(pictures), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(c.logits(pictures), c.module(pictures))
    spread = c.logits(pictures)
    assert float((spread[:, 0] - spread[:, 1]).abs().max()) > 1e-6
    other = pictures.flip(0)
    assert torch.allclose(c.head(c.features(other)), c.logits(other), rtol=1e-5, atol=1e-6)


def test_a_split_at_a_stage_is_exact_too(pictures):
    torch.manual_seed(0)
    c = load_classifier(
        "bcos:cifar10_resnet20", pretrained=False, class_names=list("abcdefghij"), features="layer2", size=32
    )
    noisy(c.module)
    z = c.features(pictures)
    assert z.shape == (2, 32, 16, 16)
    assert torch.allclose(c.head(z), c.logits(pictures), rtol=1e-5, atol=1e-6)
    assert "layer3" in c.layer_names()


def test_preprocessing_and_link_are_those_of_b_cos_networks():
    c = load_classifier("bcos:resnet18", pretrained=False, class_names=["a", "b"])
    assert c.link == "sigmoid"
    assert (c.preprocessing.size, c.preprocessing.resize) == ((224, 224), (256, 256))
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(c.preprocessing.normalise(x), x)
    assert c.class_names == ("a", "b")
    assert c.source is None
    logits = torch.zeros(1, 2)
    assert torch.equal(c.probabilities(logits), torch.full((1, 2), 0.5))


def test_published_weights_come_by_name_and_only_when_asked(published):
    load_classifier("bcos:resnet18", pretrained=False, class_names=["a"], size=32)
    assert published == []
    c = load_classifier("bcos:resnet18", size=32)
    ((address, options),) = published
    assert address.startswith("https://github.com/B-cos/")
    assert address.endswith("/resnet_18-68b4160fff.pth")
    assert options["check_hash"]
    assert options["weights_only"]
    torch.manual_seed(3)
    assert c.fingerprint == fingerprint(build_network("resnet18"))
    assert c.source == "bcos:resnet18"
    assert len(c.class_names) == 1000
    assert c.class_names[281] == "tabby"


def test_failed_downloads_and_networks_without_weights_say_what_to_do(monkeypatch, published):
    with pytest.raises(ModelError, match=r"Nobody has published weights of bcos:small_resnet.*file:CHECKPOINT"):
        load_classifier("bcos:small_resnet")
    assert published == []
    with pytest.raises(ModelError, match=r"do not fit.*missing"):
        load_classifier("bcos:resnet34")

    def fail(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fail)
    with pytest.raises(ModelError, match=r"no route to host.*file:CHECKPOINT@bcos:resnet18"):
        load_classifier("bcos:resnet18")
    with pytest.raises(InputError, match="'resnet50_long'"):
        load_classifier("bcos:resnet50_lang")


def test_a_checkpoint_of_one_s_own(tmp_path, pictures):
    torch.manual_seed(1)
    network = noisy(build_network("cifar10_resnet20", 4))
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    c = load_classifier(f"file:{tmp_path / 'own.safetensors'}@bcos:cifar10_resnet20", class_names=list("abcd"))
    assert c.link == "sigmoid"
    assert c.size == (32, 32)
    with torch.no_grad():
        assert torch.equal(c.logits(pictures), network(pictures))
    assert c.logits(pictures).shape == (2, 4)


def test_a_built_in_card_names_link_and_architecture(tmp_path, pictures):
    torch.manual_seed(1)
    network = noisy(SmallBcosResNet(3, (4, 6, 8), (0, 1)))
    folder = tmp_path / "tiny-bcos"
    folder.mkdir()
    save_file(network.state_dict(), folder / "classifier.safetensors")
    card = {
        "architecture": "small_bcos_resnet",
        "arguments": {"classes": 3, "widths": [4, 6, 8], "blocks": [0, 1]},
        "class_names": ["a", "b", "c"],
        "size": 32,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "link": "sigmoid",
    }
    (folder / "classifier.json").write_text(json.dumps(card), encoding="utf-8")
    c = load_builtin("tiny-bcos", root=tmp_path)
    assert c.link == "sigmoid"
    assert c.features(pictures).shape == (2, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(c.logits(pictures), network(pictures))


def test_a_loaded_classifier_is_explained_exactly(pictures):
    torch.manual_seed(0)
    c = load_classifier("bcos:small_resnet", pretrained=False, class_names=["a", "b"], size=32)
    found = pixel_contributions(noisy(c.module).double(), pictures.double())
    assert float(found.gap.max()) < 1e-9


def test_every_network_is_listed():
    found = list_models("bcos:*")
    assert set(found) == {"bcos"}
    assert {"resnet50_long", "densenet121_long", "vitc_s_patch1_14", "small_resnet"} <= set(found["bcos"])


def test_a_converted_network_splits_before_its_classifier_and_is_explained(pictures):
    plain = SmallResNet(5, (4, 6, 8), (0, 1))
    initialise(plain, 0)
    converted, _ = bcosify(plain.eval(), size=32)
    calibrate_norms(converted, [pictures])
    c = Classifier(converted, size=32, mean=(0, 0, 0), std=(1, 1, 1), link="sigmoid")
    z = c.features(pictures)
    assert z.shape == (2, 8, 8, 8)
    assert torch.allclose(c.head(z), c.logits(pictures), rtol=1e-5, atol=1e-6)
    head = last_layer(converted)
    bias = converted.fc.logit_layer.logit_bias
    assert torch.allclose(head.logits(z) + bias, c.logits(pictures), rtol=1e-4, atol=1e-5)
