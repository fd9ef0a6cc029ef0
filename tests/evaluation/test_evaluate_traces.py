"""Concept deletion over pictures: curves, resuming, refusals."""

import json

import pytest
import torch

from whylens.errors import InputError
from whylens.evaluation.traces import evaluate_traces
from whylens.lens import fit
from whylens.lens.trace_dictionaries import trace_settings
from whylens.registry import get_method
from whylens.traces import ConceptGame

QUICK = trace_settings(expansion=2, k=3, epochs=2, batch_size=256)
METHODS = ("frozen_gate", "gradient", "sobol", "random")


@pytest.fixture
def traced(classifier, encoder, bank, pictures):
    return fit(
        classifier,
        encoder,
        pictures[:100],
        bank=bank,
        minimum_r2=-1.0,
        traces="features,stages.0",
        trace_settings=QUICK,
    )


@pytest.mark.parametrize("layer", [None, "stages.0"])
def test_curves_of_every_order_over_pictures(traced, pictures, tmp_path, layer):
    done = evaluate_traces(
        traced, pictures[:3], METHODS, tmp_path / "out", layer=layer, steps=5, designs=2, against="random"
    )
    assert not done.failed_pictures
    assert not done.failed_methods
    scores = done.summary.scores
    assert {p for p in scores if not p.startswith("concepts/")} == {
        f"{game}-concepts/{quantity}/replace/steps-5"
        for game in ("deletion", "insertion")
        for quantity in ("logit", "top1")
    }
    assert all(set(found) == set(METHODS) for p, found in scores.items() if not p.startswith("concepts/"))
    assert scores["concepts/completeness-gap"]["frozen_gate"].mean < 1e-9
    document = json.loads((done.folder / "results.json").read_text())
    assert document["kind"] == "traces"
    page = (done.folder / "results.md").read_text()
    assert "deletion-concepts/logit/replace/steps-5` ↓" in page
    assert "insertion-concepts/logit/replace/steps-5` ↑" in page


def test_an_interrupted_run_goes_on_to_the_same_numbers(traced, pictures, tmp_path):
    whole = evaluate_traces(traced, pictures[:4], METHODS, tmp_path / "whole", steps=4, designs=2)
    evaluate_traces(traced, pictures[:4], METHODS, tmp_path / "part", steps=4, designs=2, limit=2)
    done = evaluate_traces(traced, pictures[:4], METHODS, tmp_path / "part", steps=4, designs=2)
    assert done.reused == 2
    for protocol, found in whole.summary.scores.items():
        for method, interval in found.items():
            assert done.summary.scores[protocol][method].mean == pytest.approx(interval.mean, abs=1e-6)


def test_an_affine_head_is_deleted_best_by_its_contributions(traced, pictures, tmp_path):
    """There shares are what deletion does, so no order goes down faster; a closed-form answer for the whole chain."""
    assert traced.classifier.affine_head is not None
    done = evaluate_traces(traced, pictures[:4], ("frozen_gate", "random"), tmp_path / "out", steps=20)
    for row in (done.folder / "rows").iterdir():
        values = {m: e["values"] for m, e in json.loads(row.read_text())["methods"].items()}
        name = "deletion-concepts/logit/replace/steps-20"
        assert values["frozen_gate"][name] <= values["random"][name] + 1e-5


def test_the_game_is_the_network_with_some_concepts_alone(traced, pictures):
    dictionary = traced.more_dictionaries[0]
    at = traced.classifier.at("stages.0")
    x = traced.classifier.preprocess(pictures[0])
    z = at.features(x[None])
    codes = dictionary.encode(z)
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, dictionary.latents, generator=generator) < 0.5
    for mode in ("replace", "residual"):
        game = ConceptGame(traced.classifier, dictionary, x, mode=mode)
        rest = 0 if mode == "replace" else z - dictionary.decode(codes)
        expected = torch.cat([at.head(dictionary.decode(codes * m[None, :, None, None]) + rest) for m in masks])
        torch.testing.assert_close(game.logits(masks), expected.detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(game.play(masks), expected[:, game.target].detach(), atol=1e-5, rtol=1e-4)


def test_the_gradient_order_is_that_of_finite_differences(traced, pictures):
    dictionary = traced.more_dictionaries[0]
    at = traced.classifier.at("stages.0")
    x = traced.classifier.preprocess(pictures[0])
    game = ConceptGame(traced.classifier, dictionary, x, mode="replace")
    codes = dictionary.encode(at.features(x[None])).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(at.head(dictionary.decode(codes))[0, game.target], codes)
    expected = (gradient.abs() * (codes > 0))[0].sum((1, 2))
    torch.testing.assert_close(game.gradient_importance(), expected.detach(), atol=1e-5, rtol=1e-3)


def test_what_cannot_be_evaluated(traced, lens, pictures, tmp_path):
    out = tmp_path / "out"
    for methods, message in (
        ((), "list"),
        (("faithtrace",), "explains by words"),
        (("sobbol",), "sobbol"),
        (("fact{layer=features}",), "given once"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_traces(traced, pictures[:1], methods, out)
    with pytest.raises(InputError, match="no dictionary"):
        evaluate_traces(lens, pictures[:1], ("random",), out)
    with pytest.raises(InputError, match="no dictionary"):
        evaluate_traces(traced, pictures[:1], ("random",), out, layer="stages.1")
    with pytest.raises(InputError, match="compare"):
        evaluate_traces(traced, pictures[:1], ("random",), out, against="sobol")
    with pytest.raises(InputError, match="steps"):
        evaluate_traces(traced, pictures[:1], ("random",), out, steps=0)
    assert not out.exists()
    assert get_method("frozen_gate").kind == "trace"
