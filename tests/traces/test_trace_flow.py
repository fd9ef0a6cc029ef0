"""Across layers nothing is lost."""

import pytest
import torch
from trace_worlds import bcos, everything, in_double, pictures, traced

from whylens.errors import InputError
from whylens.traces import HeldNetwork, concept_flow, concept_shares_of, find_places

CASES = {
    "bcos": (lambda: bcos("small resnet"), ("stages.0", None), "bcos"),
    "vit": (lambda: bcos("vit with a stem"), ("0.transformer.encoder_0", "0.transformer.encoder_1"), "bcos"),
    "gates": (everything, ("prelu", "out"), "gates"),
}


@pytest.mark.parametrize("mode", ["residual", "replace"])
@pytest.mark.parametrize("case", list(CASES))
def test_shares_of_early_concepts_add_up_to_the_code_of_a_late_one(case, mode):
    make, layers, hold = CASES[case]
    classifier = make()
    lens = traced(classifier, *layers, offset=True)
    held = HeldNetwork(classifier, pictures(), find_places(classifier, lens.dictionaries), mode=mode, hold=hold)
    late = held.stages[1]
    for concept in late.presence().sum(0).argsort(descending=True)[:3].tolist():
        shares, remainders = concept_shares_of(held, 1, concept)
        total = shares.sum(1) + sum(remainders.values())
        torch.testing.assert_close(total, late.presence()[:, concept], atol=1e-10, rtol=1e-9)


def test_shares_are_those_of_autograd_between_the_two_layers():
    classifier = bcos()
    lens = traced(classifier, "stages.0", None)
    early, late = lens.dictionaries
    held = HeldNetwork(classifier, pictures(1), find_places(classifier, lens.dictionaries), mode="replace", hold="bcos")
    from whylens.bcos import explanation_mode

    exact = in_double(classifier)
    codes = early.encode(exact.at("stages.0").features(pictures(1).double())).detach().requires_grad_()
    with explanation_mode(exact.module):
        decoded = torch.einsum("bkhw,kd->bdhw", codes, early.decoder.double())
        z = exact.module.stages[1](decoded)
        presence = late.encode(z).sum((2, 3))
    concept = int(presence[0].argmax())
    (gradient,) = torch.autograd.grad(presence[0, concept], codes)
    shares, _ = concept_shares_of(held, 1, concept)
    torch.testing.assert_close(shares[0], (gradient * codes)[0].sum((1, 2)).detach(), atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("mode", ["residual", "replace"])
@pytest.mark.parametrize("case", list(CASES))
def test_the_flow_graph_is_conserved(case, mode):
    make, layers, hold = CASES[case]
    classifier = make()
    lens = traced(classifier, *layers, offset=True)
    exact = in_double(classifier)
    for contrast in (None, 1):
        flow = concept_flow(lens, pictures(1)[0], target=0, contrast=contrast, k=3, mode=mode, hold=hold)
        assert flow.gap < 1e-9
        assert len(flow.layers) == 2
        named = [n for n in flow.nodes if n.latent is not None]
        assert 0 < len(named) <= 6
        if mode == "residual" and hold == "gates":
            logits = exact.logits(pictures(1).double())[0]
            expected = logits[0] - (logits[1] if contrast else 0)
            assert flow.total == pytest.approx(float(expected), abs=1e-9)
    # What the first layer says together with all constants is the whole.
    first = [n.value for n in flow.nodes if n.layer == flow.layers[0]]
    last = [n.value for n in flow.nodes if n.layer == flow.layers[1] and n.name == "constants"]
    assert sum(first) + sum(last) == pytest.approx(flow.total, abs=1e-9)


def test_three_layers():
    classifier = bcos()
    flow = concept_flow(classifier_lens(classifier), pictures(1)[0], ["stem", "stages.0", "features"], k=2, hold="bcos")
    assert len(flow.layers) == 3
    assert flow.gap < 1e-9


def classifier_lens(classifier):
    return traced(classifier, "stages.0")


def test_what_a_flow_cannot_be_of():
    lens = classifier_lens(bcos())
    with pytest.raises(InputError, match="at least two layers"):
        concept_flow(lens, pictures(1)[0], hold="bcos")
    with pytest.raises(InputError, match="one picture"):
        concept_flow(lens, pictures(1), ["stem", "stages.0"], hold="bcos")
    with pytest.raises(InputError, match="k must"):
        concept_flow(lens, pictures(1)[0], ["stem", "stages.0"], k=0, hold="bcos")
    with pytest.raises(InputError, match="once"):
        concept_flow(lens, pictures(1)[0], ["stem", "stem"], hold="bcos")
