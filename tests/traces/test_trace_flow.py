"""Across layers nothing is lost."""

import pytest
import torch
from trace_worlds import bcos, everything, in_double, pictures, traced

from whylens.errors import InputError
from whylens.traces import Fact, HeldNetwork, concept_flow, concept_map, concept_shares_of, find_places, gradient_at

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
        assert len(flow.layers) == 3
        assert flow.layers[0] == "picture"
        named = [n for n in flow.nodes if n.latent is not None]
        assert 0 < len(named) <= 6
        if mode == "residual" and hold == "gates":
            logits = exact.logits(pictures(1).double())[0]
            expected = logits[0] - (logits[1] if contrast else 0)
            assert flow.total == pytest.approx(float(expected), abs=1e-9)
    # What the first layer says together with all constants is the whole.
    for start in range(3):
        here = [n.value for n in flow.nodes if n.layer == flow.layers[start]]
        later = [n.value for n in flow.nodes if n.layer in flow.layers[start + 1 :] and n.name == "constants"]
        assert sum(here) + sum(later) == pytest.approx(flow.total, abs=1e-9)


def test_what_enters_the_first_layer_is_its_pixel_maps():
    classifier = bcos()
    lens = traced(classifier, "stages.0", None)
    x = pictures(1)
    flow = concept_flow(lens, x[0], target=0, k=3, mode="replace", hold="bcos")
    held = HeldNetwork(classifier, x, find_places(classifier, lens.dictionaries), mode="replace", hold="bcos")
    gradient = gradient_at(held, 0, torch.nn.functional.one_hot(torch.tensor([0]), held.logits.shape[1]))
    (pixels,) = [i for i, n in enumerate(flow.nodes) if n.name == "pixels"]
    checked = 0
    for number, node in enumerate(flow.nodes):
        if node.layer == "stages.0" and node.latent is not None:
            (own,) = [e.value for e in flow.edges if (e.start, e.end) == (pixels, number)]
            drawn = concept_map(held, node.latent, gradient=gradient)
            assert own == pytest.approx(float(drawn.map.sum()), abs=1e-10)
            assert node.value == pytest.approx(float(drawn.value), abs=1e-10)
            checked += 1
    assert checked == 3


def test_three_layers():
    classifier = bcos()
    flow = concept_flow(classifier_lens(classifier), pictures(1)[0], ["stem", "stages.0", "features"], k=2, hold="bcos")
    assert len(flow.layers) == 4
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


def test_a_trace_carries_the_flow_of_its_own_question():
    classifier = bcos()
    lens = traced(classifier, "stages.0", None)
    x = pictures(2)
    plain = Fact()(lens, x, torch.tensor([0, 1]))
    found = Fact(flow="dictionaries")(lens, x, torch.tensor([0, 1]))
    for one, other, picture, target in zip(plain, found, x, (0, 1), strict=True):
        assert one.flow is None
        assert other.contributions == one.contributions
        assert other.flow == concept_flow(lens, picture, target=target, k=5, mode="residual", hold="bcos")
        # The trace's total has the logit bias, which no layer has a part in.
        assert other.flow.total + other.remainders.get("logit bias", 0.0) == pytest.approx(other.total, abs=1e-9)
        assert other.passes > one.passes
    (named,) = Fact(flow="stem, stages.0", mode="replace")(lens, x[:1], contrasts=None)
    assert named.flow.layers == ("picture", "stem", "stages.0")
    for wrong, message in ((" , ", "flow must"), (3, "flow must"), ("stem", "at least two"), ("stem,no", "layer")):
        with pytest.raises(InputError, match=message):
            Fact(flow=wrong)(lens, x[:1])
