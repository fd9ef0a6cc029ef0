"""Traces in a lens: dictionaries of several layers, explanations with pixel maps, files."""

import json

import numpy as np
import pytest
import torch

from whylens.classifiers import Classifier
from whylens.errors import InputError
from whylens.lens import Lens, fit
from whylens.lens.storage import share_embeddings
from whylens.lens.trace_dictionaries import trace_layers, trace_settings
from whylens.networks import initialise
from whylens.records import bundle_explanation
from whylens.traces import completeness_gap

QUICK = trace_settings(expansion=2, k=3, epochs=2, batch_size=256)


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


def test_a_lens_is_fitted_with_dictionaries_of_several_layers(traced, classifier, tmp_path, pictures):
    first, second = traced.dictionaries
    assert traced.dictionary is first
    assert (first.layer, second.layer) == (None, "stages.0")
    assert not second.origin.pooled
    assert second.width == classifier.at("stages.0").width
    assert first.homogeneous
    assert second.homogeneous
    again = Lens.load(traced.save(tmp_path / "lens"), classifier=classifier)
    assert [d.fingerprint for d in again.dictionaries] == [first.fingerprint, second.fingerprint]
    assert traced.with_more_dictionaries().fingerprint != traced.fingerprint
    for layer in (None, "stages.0"):
        options = {"methods": "frozen_gate", "settings": {"frozen_gate": {"layer": layer}}}
        one, two = (lens.explain(pictures[0], **options).trace for lens in (traced, again))
        assert one.total == pytest.approx(two.total)
        assert [c.latent for c in one.contributions] == [c.latent for c in two.contributions]


def test_an_explanation_holds_the_trace_and_its_maps(traced, pictures):
    why = traced.explain(pictures[0], methods=["frozen_gate"], settings={"frozen_gate": {"layer": "stages.0"}})
    trace = why.trace
    assert completeness_gap(trace) < 1e-9
    assert trace.total == pytest.approx(why.target.logit, rel=1e-4, abs=1e-5)
    maps = why.concept_maps["frozen_gate"]
    assert list(maps) == [str(c.latent) for c in trace.contributions[:6]]
    for array in maps.values():
        assert array.shape == (16, 16)
        assert array.dtype == np.float32
    against = traced.explain(pictures[0], methods=["frozen_gate"], contrast="runner-up").trace
    assert against.contrast is not None
    assert against.total >= 0


def test_traces_and_maps_survive_a_bundle_and_a_repetition(traced, pictures, tmp_path):
    why = traced.explain(pictures[0], methods=["frozen_gate"], seed=3)
    bundle = bundle_explanation(why)
    assert sum(name.startswith("arrays/") for name in bundle.blobs) == 1 + len(why.concept_maps["frozen_gate"])
    why.save(tmp_path / "folder")
    plain = why.to_dict()
    assert set(plain["concept_maps"]["frozen_gate"]) == set(why.concept_maps["frozen_gate"])
    assert plain["traces"]["frozen_gate"]["remainders"] == dict(why.trace.remainders)


def test_two_dictionaries_of_one_layer_and_those_of_others_are_refused(traced, encoder, bank, pictures, module):
    with pytest.raises(InputError, match="one of each layer"):
        traced.with_more_dictionaries(traced.dictionary)
    other = type(module)(6, (4, 8, 12), (0, 1))
    initialise(other, 9)
    with pytest.raises(InputError, match="other weights"):
        Lens.with_more_dictionaries(
            fit(Classifier(other, size=16), encoder, pictures[:100], bank=bank, minimum_r2=-1.0), traced.dictionary
        )


def test_layers_are_checked_before_any_picture_is_read(classifier, encoder, bank):
    for traces, message in (("stages.7", "layer"), ("features,features", "twice"), (" , ", "No layer")):
        with pytest.raises(InputError, match=message):
            fit(classifier, encoder, "no folder", bank=bank, traces=traces)
    with pytest.raises(InputError, match="one dictionary"):
        fit(classifier, encoder, "no folder", bank=bank, traces="features", dictionary=True)
    assert trace_layers("features, stages.0", classifier) == [None, "stages.0"]


def test_latents_have_names_only_where_the_aligner_reaches(traced):
    first, second = traced.dictionaries
    names = traced.latent_names(first)
    assert set(names.values()) <= set(traced.bank.phrases)
    assert set(names) <= set(range(first.latents))
    assert traced.latent_names(second) == {}
    assert torch.equal(first.decoder, traced.dictionaries[0].decoder)


def test_lenses_that_ship_together_share_one_bank(lens, tmp_path, pictures):
    whole = lens.save(tmp_path / "whole")
    small = lens.save(tmp_path / "small")
    before = sum(f.stat().st_size for f in small.iterdir())
    share_embeddings(small, "whole")
    assert sum(f.stat().st_size for f in small.iterdir()) < before
    again = Lens.load(small, classifier=lens.classifier)
    assert again.fingerprint == Lens.load(whole, classifier=lens.classifier).fingerprint
    assert torch.equal(again.embeddings, Lens.load(whole, classifier=lens.classifier).embeddings)
    assert again.explain(pictures[0]).target == lens.explain(pictures[0]).target
    meta = json.loads((whole / "lens.json").read_text())
    meta["bank"]["phrases"][0] = "another phrase"
    (whole / "lens.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="shares another bank"):
        Lens.load(small, classifier=lens.classifier)
    with pytest.raises(InputError, match=r"cannot be read"):
        share_embeddings(lens.save(tmp_path / "third"), "nowhere")
