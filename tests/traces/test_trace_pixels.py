"""Pixel maps of concepts, positions and logits: their sums are the codes, contributions and logits."""

import pytest
import torch
from trace_worlds import bcos, dictionary_of, everything, in_double, pictures, traced

from whylens.bcos.holding import recording, replaying
from whylens.classifiers.calls import patched
from whylens.dictionaries import class_coefficients
from whylens.errors import InputError, ModelError
from whylens.traces import (
    Fact,
    FrozenGate,
    HeldNetwork,
    Traced,
    concept_flow,
    concept_map,
    find_places,
    gradient_at,
    logit_map,
)
from whylens.traces.gates import FrozenGates

CASES = {
    "bcos": (lambda: bcos("small resnet"), "stages.0", "bcos"),
    "vit": (lambda: bcos("vit with a stem"), "0.transformer.encoder_0", "bcos"),
    "gates": (everything, "prelu", "gates"),
}


def held_at(case, *, mode="residual", offset=True):
    make, layer, hold = CASES[case]
    classifier = make()
    lens = traced(classifier, layer, offset=offset)
    held = HeldNetwork(classifier, pictures(), find_places(classifier, lens.dictionaries), mode=mode, hold=hold)
    return classifier, layer, lens.dictionaries[0], held


def loudest(held):
    return held.stages[0].presence().sum(0).argsort(descending=True)[:3].tolist()


@pytest.mark.parametrize("case", list(CASES))
def test_activation_maps_sum_to_the_codes(case):
    classifier, layer, dictionary, held = held_at(case)
    codes = dictionary.encode(in_double(classifier).at(layer).features(pictures().double())).flatten(2)
    for concept in loudest(held):
        found = concept_map(held, concept)
        torch.testing.assert_close(found.value, codes[:, concept].sum(1), atol=1e-10, rtol=1e-9)
        assert float(found.gap.max()) < 1e-9
        summed = found.map.flatten(1).sum(1) + sum(found.constants.values())
        torch.testing.assert_close(summed, found.value, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("case", list(CASES))
def test_contribution_maps_sum_to_the_shares(case):
    _, _, _, held = held_at(case)
    gradient = gradient_at(held, 0, class_coefficients(held.logits))
    shares, _ = held.stages[0].shares(gradient)
    for concept in loudest(held):
        found = concept_map(held, concept, gradient=gradient)
        torch.testing.assert_close(found.value, shares[:, concept], atol=1e-10, rtol=1e-9)
        assert float(found.gap.max()) < 1e-9


def test_maps_of_all_positions_are_the_whole_map():
    _, _, _, held = held_at("bcos")
    concept = loudest(held)[0]
    rows, columns = held.stages[0].features.shape[2:]
    parts = [concept_map(held, concept, position=(i, j)).map for i in range(rows) for j in range(columns)]
    torch.testing.assert_close(sum(parts), concept_map(held, concept).map, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("mode", ["residual", "replace"])
@pytest.mark.parametrize("case", list(CASES))
def test_the_map_of_a_logit_sums_to_it(case, mode):
    _, _, _, held = held_at(case, mode=mode)
    coefficients = class_coefficients(held.logits)
    found = logit_map(held, coefficients)
    torch.testing.assert_close(found.value, (held.logits * coefficients).sum(1))
    assert float(found.gap.max()) < 1e-9


def test_channels_have_maps_too():
    classifier = bcos()
    held = HeldNetwork(classifier, pictures(), find_places(classifier, ["stages.0"]), hold="bcos")
    z = in_double(classifier).at("stages.0").features(pictures().double())
    found = concept_map(held, 2)
    torch.testing.assert_close(found.value, z[:, 2].sum((1, 2)), atol=1e-10, rtol=1e-9)
    assert float(found.gap.max()) < 1e-9


def test_colours_of_a_bcos_network_are_finite_and_others_have_none():
    _, _, _, held = held_at("bcos")
    found = concept_map(held, loudest(held)[0])
    colours = found.colours()
    assert colours.shape == (3, 4, 16, 16)
    assert bool(torch.isfinite(colours).all())
    assert float(colours.min()) >= 0
    assert float(colours.max()) <= 1
    with pytest.raises(ModelError, match="six-channel"):
        concept_map(held_at("gates")[3], 0).colours()


def test_concepts_and_positions_that_are_not_there():
    _, _, _, held = held_at("bcos")
    with pytest.raises(InputError, match="no concept 24"):
        concept_map(held, 24)
    with pytest.raises(InputError, match="no position"):
        concept_map(held, 0, position=(8, 0))
    with pytest.raises(InputError, match="not cut"):
        concept_map(HeldNetwork(bcos(), pictures(1), hold="bcos"), 0)


@pytest.mark.parametrize("method", [Fact, FrozenGate])
def test_maps_of_a_method_are_those_of_its_trace(method):
    classifier = bcos() if method is Fact else everything()
    layer = "stages.0" if method is Fact else "prelu"
    lens = Traced(classifier, (dictionary_of(classifier, layer),))
    trace = method(layer=layer)(lens, pictures(1))[0]
    wanted = trace.contributions[:2]
    maps, passes = method(layer=layer).concept_maps(lens, pictures(1), [c.latent for c in wanted])
    for concept, found in zip(wanted, maps, strict=True):
        assert float(found.value) == pytest.approx(concept.value, abs=1e-10)
    assert passes == 2.0


def replayed_features(classifier, layer, hold, x):
    """A function from other pictures to the layer's features, every multiplier as it was for ``x``; fp64, no autograd."""
    exact = in_double(classifier)
    if hold == "bcos":
        at = exact.at(layer)
        with torch.no_grad(), recording(exact.module) as tape:
            at.features(x)

        def run(y):
            with torch.no_grad(), replaying(exact.module, tape):
                return at.features(y)

        return run
    gates, kept = FrozenGates(), []
    module = exact.module
    normalise = exact.preprocessing.normalise
    with torch.no_grad(), patched(gates.wrappers(module)), gates:
        module(normalise(x))

    def again(y):
        kept.clear()
        handle = module.get_submodule(layer).register_forward_hook(lambda _, __, output: kept.append(output.clone()))
        held = FrozenGates(gates.tape)
        with torch.no_grad(), patched(held.wrappers(module)), held:
            module(normalise(y))
        handle.remove()
        return kept[0]

    return again


@pytest.mark.parametrize("quantity", ["activation", "contribution", "position"])
@pytest.mark.parametrize("case", list(CASES))
def test_a_map_is_the_held_network_replayed_on_another_picture(case, quantity):
    """Sums alone cannot tell a held map from a gradient; another picture through the recorded network can.

    The replay runs the network forwards with recorded multipliers and never takes a gradient.
    """
    make, layer, hold = CASES[case]
    classifier = make()
    lens = traced(classifier, layer, offset=True)
    (dictionary,) = lens.dictionaries
    x, y = pictures(1).double(), pictures(1, seed=7).double()
    held = HeldNetwork(classifier, x, find_places(classifier, lens.dictionaries), hold=hold)
    other = HeldNetwork(classifier, y, hold=hold).encoded.detach()
    gradient = gradient_at(held, 0, class_coefficients(held.logits)) if quantity == "contribution" else None
    run = replayed_features(classifier, layer, hold, x)
    features = run(y)
    assert not torch.allclose(features, run(x), atol=1e-3)
    codes = held.stages[0].codes
    checked = 0
    for concept in loudest(held):
        position = None
        weights = (codes.indices[0] == concept) * codes.active[0]
        if quantity == "position" and codes.grid is None:
            pytest.skip("no rows and columns")
        if quantity == "position":
            place = int(weights.sum(1).argmax())
            position = (place // codes.grid[1], place % codes.grid[1])
            kept = torch.zeros_like(weights)
            kept[place] = weights[place]
            weights = kept
        found = concept_map(held, concept, gradient=gradient, position=position)
        rows = features[0].flatten(1).T
        reading = (rows - dictionary.mean.double()) @ dictionary.encoder[concept].double()
        reading = reading + dictionary.bias[concept].double()
        scale = torch.ones(len(rows), dtype=torch.float64)
        if gradient is not None:
            scale = gradient[0].flatten(1).T @ dictionary.decoder[concept].double()
        expected = float((weights.any(1) * scale * reading).sum())
        mapped = float((found.weights * other).sum() + sum(c.sum() for c in found.constants.values()))
        assert mapped == pytest.approx(expected, rel=1e-8, abs=1e-9)
        own = float(found.value)
        # Of the picture itself it is the quantity, and another picture gives another number.
        assert float(found.map.sum() + sum(c.sum() for c in found.constants.values())) == pytest.approx(own, abs=1e-9)
        checked += abs(mapped - own) > 1e-6
    assert checked


@pytest.mark.parametrize("method", [Fact, FrozenGate])
def test_bad_pictures_and_dictionaries_are_refused_by_maps_and_flows_too(method):
    hold = method.hold
    one, other = (bcos(), bcos("basic resnet")) if method is Fact else (everything(), bcos())
    layer = "stages.0" if method is Fact else "prelu"
    foreign = Traced(one, (dictionary_of(other),))
    with pytest.raises(InputError, match="other weights"):
        method()(foreign, pictures(1))
    with pytest.raises(InputError, match="other weights"):
        method().concept_maps(foreign, pictures(1), [0])
    lens = traced(one, layer)
    with pytest.raises(InputError, match="16 x 16"):
        method()(lens, pictures(1, 24))
    with pytest.raises(InputError, match="16 x 16"):
        method().concept_maps(lens, pictures(1, 24), [0])
    with pytest.raises(InputError, match="16 x 16"):
        concept_flow(lens, pictures(1, 24)[0], [layer, "features"], hold=hold)
    with pytest.raises(InputError, match="layer"):
        method(layer="nowhere")(lens, pictures(1))


@pytest.mark.parametrize("method", [Fact, FrozenGate])
def test_latents_that_are_never_active_have_empty_traces_maps_and_flows(method):
    classifier = bcos() if method is Fact else everything()
    layer = "stages.0" if method is Fact else "prelu"
    silent = dictionary_of(classifier, layer)
    silent.encoder.zero_()
    lens = Traced(classifier, (silent,))
    (trace,) = method()(lens, pictures(1))
    assert trace.contributions == ()
    assert any("No latent of the dictionary is active" in note for note in trace.notes)
    (found,), _ = method().concept_maps(lens, pictures(1), [3])
    assert float(found.value) == 0
    assert float(found.map.abs().max()) == 0
    assert float(found.gap) == 0
    flow = concept_flow(lens, pictures(1)[0], [layer, "features"], mode="residual", hold=method.hold)
    assert flow.gap < 1e-9
    assert not any(node.latent is not None for node in flow.nodes if node.layer == layer)
