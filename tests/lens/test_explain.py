from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from whylens.banks import ConceptBank
from whylens.encoders import Encoder
from whylens.errors import InputError, PictureError
from whylens.lens import Lens
from whylens.lens.faithfulness import measure_words
from whylens.registry import list_methods
from whylens.types import Explanation


def test_an_explanation_is_of_the_predicted_class(lens: Lens, pictures: list[Path]) -> None:
    why = lens.explain(pictures[3])
    with torch.no_grad():
        logits = lens.classifier.logits(lens.classifier.preprocess(pictures[3])[None])[0]
    assert why.target.index == int(logits.argmax())
    assert why.prediction.top[0] == why.target
    assert why.target.logit == pytest.approx(float(logits.max()), abs=1e-4)
    assert why.target.probability == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
    assert why.contrast is None
    assert why.words.method == "faithtrace"
    assert why.provenance.passes == 1
    assert why.picture.shape == (16, 16, 3)
    json.dumps(why.to_dict())


def test_the_runner_up_is_asked_about_unasked(lens: Lens, pictures: list[Path]) -> None:
    why = lens.explain(pictures[0])
    order = [score.index for score in why.prediction.top]
    assert why.results["faithtrace:runner-up"].contrast == order[1]
    asked = lens.explain(pictures[0], contrast="runner-up")
    assert asked.contrast is not None
    assert asked.contrast.index == order[1]
    assert list(asked.results) == ["faithtrace"]


def test_a_batch_gives_what_single_pictures_give(lens: Lens, pictures: list[Path]) -> None:
    methods = list_methods("words")
    together = lens.explain_batch(pictures[:5], methods=methods)
    for path, result in zip(pictures, together, strict=False):
        alone = lens.explain(path, methods=methods)
        assert isinstance(result, Explanation)
        for name in methods:
            assert [p.text for p in result.results[name]] == [p.text for p in alone.results[name]]
            np.testing.assert_allclose(
                [p.score for p in result.results[name]], [p.score for p in alone.results[name]], atol=1e-5, rtol=1e-4
            )
        assert result.faithfulness == pytest.approx(alone.faithfulness, abs=1e-5)


def test_an_intermediate_layer_can_be_asked(lens: Lens, pictures: list[Path]) -> None:
    why = lens.explain(pictures[0], settings={"faithtrace": {"layer": "stages.0"}})
    assert "layer=stages.0" in why.words.protocol
    assert len(why.words) > 0


def test_faithfulness_has_its_floor_and_protocol(lens: Lens, pictures: list[Path]) -> None:
    why = lens.explain(pictures[1])
    protocols = [key for key in why.faithfulness if "/random" not in key]
    assert len(protocols) == 2
    assert all(f"{key}/random" in why.faithfulness for key in protocols)
    assert all(0 <= value <= 1 for value in why.faithfulness.values())
    x = lens.classifier.preprocess(pictures[1])[None]
    with torch.no_grad():
        z = lens.classifier.features(x)[0]
    again = measure_words(lens, z, why.words, seed=0, image_hash=why.provenance.pixels_hash)
    assert {f"faithtrace: {k}": v for k, v in again.items()} == pytest.approx(why.faithfulness, abs=1e-6)


def test_an_unreadable_picture_does_not_stop_its_batch(lens: Lens, pictures: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    results = lens.explain_batch([pictures[0], bad, pictures[1]])
    assert isinstance(results[1], PictureError)
    assert isinstance(results[0], Explanation)
    assert isinstance(results[2], Explanation)
    assert results[2].provenance.image_name == pictures[1].name
    with pytest.raises(PictureError, match=r"bad\.jpg is empty"):
        lens.explain(bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 99}, "0 to 5"),
        ({"target": "catt"}, "'cat'"),
        ({"target": "cat", "contrast": "CAT"}, "same class"),
        ({"methods": "faithtrac"}, "faithtrace"),
        ({"methods": []}, "No method"),
        ({"settings": {"texter": {}}}, "Unknown method in settings"),
        ({"settings": {"faithtrace": {"depth": 3}}}, "depth"),
    ],
)
def test_bad_questions_are_named(lens: Lens, pictures: list[Path], arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lens.explain(pictures[0], **arguments)  # type: ignore[arg-type]


def test_classes_are_found_by_name_whatever_the_case(lens: Lens, pictures: list[Path]) -> None:
    assert lens.explain(pictures[0], target="FOX").target.index == 5
    assert lens.explain(pictures[0], target="5").target.name == "fox"


def test_another_bank_needs_no_new_fit(lens: Lens, encoder: Encoder, pictures: list[Path]) -> None:
    bank = ConceptBank(
        phrases=("red sky", "blue plant", "noisy picture"), groups=("own",) * 3, sources=("test",) * 3, name="own"
    )
    other = lens.with_bank(bank, encoder)
    assert {p.text for p in other.explain(pictures[0]).words} <= set(bank.phrases)
    strange = ConceptBank(phrases=("red", "zeppelin"), groups=("own",) * 2, sources=("test",) * 2, name="own")
    with pytest.raises(InputError, match="zeppelin"):
        lens.with_bank(strange, encoder)


def test_nothing_of_the_model_is_changed(lens: Lens, module: torch.nn.Module, pictures: list[Path]) -> None:
    module.train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    lens.explain(pictures[0], methods=list_methods("words"))
    assert module.training
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    module.eval()


def test_nan_logits_are_refused(lens: Lens, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(x), lens.classifier.width), torch.full((len(x), 6), torch.nan)

    monkeypatch.setattr(lens.classifier, "features_and_logits", poisoned)
    with pytest.raises(Exception, match="NaN"):
        lens.explain(pictures[0])
