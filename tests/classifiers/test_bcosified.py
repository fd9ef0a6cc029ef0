from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from whylens.bcos import calibrate_norms, pixel_contributions, uniform_off_labels_loss
from whylens.classifiers import Classifier, bcosify_classifier, load_classifier, save_bcosified
from whylens.classifiers.bcosified import architecture_name
from whylens.errors import InputError, ModelError, StoreError
from whylens.networks import SmallResNet


@pytest.fixture(scope="module")
def original() -> Classifier:
    return load_classifier("builtin:tiny-imagenet")


@pytest.fixture(scope="module")
def converted(original: Classifier):
    return bcosify_classifier(original)


def x_of(classifier: Classifier, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, *classifier.size, generator=torch.Generator().manual_seed(0))


def test_a_rewritten_classifier_comes_back_from_its_file(converted, original: Classifier, tmp_path: Path) -> None:
    made, report = converted
    assert report.preserved < 1e-5
    assert report.completeness < 1e-9
    assert (made.link, made.preprocessing.mean) == ("sigmoid", (0.0, 0.0, 0.0))
    assert made.class_names == original.class_names
    path = save_bcosified(made, tmp_path / "net.safetensors")
    again = load_classifier(f"bcosified:{path}")
    assert again.fingerprint == made.fingerprint
    assert again.class_names == original.class_names
    assert (again.link, again.size, again.source) == ("sigmoid", original.size, f"bcosified:{path}")
    x = x_of(made)
    assert torch.equal(again.logits(x), made.logits(x))
    # The source alone makes it again, so that a lens can be fitted for it.
    assert load_classifier(again.source).fingerprint == made.fingerprint


def test_what_was_trained_afterwards_is_kept(converted, tmp_path: Path) -> None:
    made, _ = converted
    path = save_bcosified(made, tmp_path / "a.safetensors")
    trained = load_classifier(f"bcosified:{path}")
    x = x_of(trained, 4)
    calibrate_norms(trained.module, [x])
    trained.module.train()
    optimiser = torch.optim.Adam(trained.module.parameters(), lr=1e-3)
    loss = uniform_off_labels_loss(trained.module(x), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    optimiser.step()
    trained.module.eval()
    second = save_bcosified(trained.module, tmp_path / "b.safetensors")
    again = load_classifier(f"bcosified:{second}")
    with torch.no_grad():
        assert torch.equal(again.logits(x), trained.logits(x))
    assert not torch.equal(again.logits(x), made.logits(x))
    exact = pixel_contributions(again.module.double(), x.double())
    assert float(exact.gap.max()) < 1e-9


@pytest.mark.slow
def test_a_network_of_torchvision_with_another_number_of_classes(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    weights = resnet18(num_classes=7).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    made = load_classifier(f"file:{tmp_path / 'w.safetensors'}@torchvision:resnet18", size=64)
    converted, report = bcosify_classifier(made)
    assert any("averages" in change.what for change in report.changes)
    path = save_bcosified(converted, tmp_path / "n.safetensors")
    again = load_classifier(f"bcosified:{path}", class_names=list("abcdefg"))
    assert again.class_names == tuple("abcdefg")
    x = x_of(converted, 2)
    assert torch.equal(again.logits(x), converted.logits(x))


def test_sources_that_can_and_cannot_be_built_again() -> None:
    assert architecture_name("file:a/b@c.pt@torchvision:resnet18/X") == "torchvision:resnet18"
    assert architecture_name("timm:resnet18.a1_in1k") == "timm:resnet18.a1_in1k"
    for source in (None, "hf:some/model", "bcos:resnet18", "builtin:"):
        with pytest.raises(InputError, match="names no architecture"):
            architecture_name(source)


def test_bad_files_are_refused(converted, tmp_path: Path) -> None:
    made, _ = converted
    path = save_bcosified(made, tmp_path / "net.safetensors")
    with pytest.raises(StoreError, match="exists already"):
        save_bcosified(made, path)
    with pytest.raises(InputError, match="There is no file"):
        load_classifier(f"bcosified:{tmp_path / 'none'}")
    (tmp_path / "text").write_text("hello, no tensors here")
    with pytest.raises(StoreError, match="damaged"):
        load_classifier(f"bcosified:{tmp_path / 'text'}")
    tensors = load_file(path)
    save_file(tensors, tmp_path / "plain.safetensors")
    with pytest.raises(StoreError, match="not of a rewritten network"):
        load_classifier(f"bcosified:{tmp_path / 'plain.safetensors'}")
    header = made.module.whylens_recipe
    save_file(
        tensors, tmp_path / "new.safetensors", {"whylens.bcosified": json.dumps({**header, "schema_version": "7"})}
    )
    with pytest.raises(StoreError, match="schema"):
        load_classifier(f"bcosified:{tmp_path / 'new.safetensors'}")
    lacking = {k: v for k, v in header.items() if k != "mean"}
    save_file(tensors, tmp_path / "lacking.safetensors", {"whylens.bcosified": json.dumps(lacking)})
    with pytest.raises(StoreError, match="header"):
        load_classifier(f"bcosified:{tmp_path / 'lacking.safetensors'}")
    tensors.pop(next(name for name in tensors if name.endswith("linear.weight")))
    save_file(tensors, tmp_path / "short.safetensors", {"whylens.bcosified": json.dumps(header)})
    with pytest.raises(ModelError, match="missing"):
        load_classifier(f"bcosified:{tmp_path / 'short.safetensors'}")


def test_a_module_that_was_not_rewritten_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not come from"):
        save_bcosified(SmallResNet(3, (4, 4), (0,)), tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="a module of your own"):
        bcosify_classifier(Classifier(SmallResNet(3, (4, 4), (0,)), size=16))
    assert not list(tmp_path.iterdir())


def test_a_network_with_attention_is_refused() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 4, 4)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.fc = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.conv(x).flatten(2).transpose(1, 2)
            return self.fc(self.attention(z, z, z)[0].mean(1))

    with pytest.raises(ModelError, match="MultiheadAttention"):
        bcosify_classifier(Classifier(Attending(), size=16, source="timm:resnet18"))
