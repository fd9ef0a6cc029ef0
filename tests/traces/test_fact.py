"""Exact traces of B-cos networks, against the network itself in double precision."""

import pytest
import torch
from torch import nn
from trace_worlds import bcos, bcos_zoo, dictionary_of, in_double, pictures, traced

from whylens.bcos import explanation_mode, recording, replaying
from whylens.bcos.contributions import run_to
from whylens.classifiers import Classifier
from whylens.dictionaries import SparseCodes, class_coefficients
from whylens.errors import InputError, ModelError
from whylens.registry import get_method
from whylens.traces import Fact, HeldNetwork, Traced, cached_contributions, completeness_gap, find_places

LAYERS = {
    "small resnet": ("stages.0", None),
    "basic resnet": ("layer1", None),
    "densenet": (None,),
    "vit with a stem": ("0.transformer.encoder_0", "0.transformer.encoder_1"),
}


def values(trace, count):
    found = torch.zeros(count, dtype=torch.float64)
    for concept in trace.contributions:
        found[concept.latent] = concept.value
    return found


@pytest.mark.parametrize("mode", ["residual", "replace"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_shares_add_up_to_the_logit_of_the_network_in_double(name, mode):
    classifier = bcos(name)
    exact = in_double(classifier)
    x = pictures()
    for layer in LAYERS[name]:
        for offset in (False, True):
            lens = traced(classifier, layer, offset=offset)
            traces = Fact(layer=layer, mode=mode)(lens, x)
            (dictionary,) = lens.dictionaries
            at = exact if layer is None else exact.at(layer)
            z = at.features(x.double())
            logits = at.head(z if mode == "residual" else dictionary(z))
            for trace, row in zip(traces, logits, strict=True):
                assert trace.total == pytest.approx(float(row[trace.target]), abs=1e-9)
                assert completeness_gap(trace) < 1e-9
                assert ("reconstruction error" in trace.remainders) == (mode == "residual")
                assert ("dictionary mean" in trace.remainders) == offset
                assert "not linear when held" not in trace.remainders


def test_shares_are_those_of_dense_autograd_in_explanation_mode():
    classifier = bcos()
    exact = in_double(classifier).at("stages.0")
    lens = traced(classifier, "stages.0")
    (dictionary,) = lens.dictionaries
    x = pictures()
    traces = Fact(layer="stages.0", mode="replace")(lens, x)
    codes = dictionary.encode(exact.features(x.double())).detach().requires_grad_()
    with explanation_mode(exact.module):
        decoded = torch.einsum("bkhw,kd->bdhw", codes, dictionary.decoder.double())
        logits = exact.head(decoded)
        for i, trace in enumerate(traces):
            (gradient,) = torch.autograd.grad(logits[i, trace.target], codes, retain_graph=True)
            expected = (gradient * codes)[i].sum((1, 2)).detach()
            torch.testing.assert_close(values(trace, dictionary.latents), expected, atol=1e-11, rtol=1e-9)
            assert float(expected.sum()) == pytest.approx(trace.total - trace.remainders["logit bias"], abs=1e-9)


def test_the_held_network_is_the_linear_map_that_its_shares_claim():
    """Sums alone cannot tell: the ordinary gradient of a homogeneous network sums to the logit too."""
    exact = in_double(bcos())
    lens = traced(exact, "stages.0")
    x = pictures(1).double()
    held = HeldNetwork(exact, x, find_places(exact, lens.dictionaries), mode="replace", hold="bcos")
    coefficients = class_coefficients(held.logits)
    gradient = held.pull_logits(coefficients).gradient
    other = torch.rand_like(held.stages[0].output) * 2
    at = exact.at("stages.0")
    with torch.no_grad(), recording(exact.module) as tape:
        at.head(held.stages[0].output)
    with torch.no_grad(), replaying(exact.module, tape):
        replayed = at.head(other) - held.bias
    assert float((replayed * coefficients).sum()) == pytest.approx(float((gradient * other).sum()), rel=1e-9)
    z = held.stages[0].output.detach().requires_grad_()
    (plain,) = torch.autograd.grad((at.head(z) * coefficients).sum(), z)
    assert float((plain * other).sum()) != pytest.approx(float((gradient * other).sum()), rel=1e-3)


def test_closed_form_from_cached_codes_is_the_trace():
    classifier = bcos()
    exact = in_double(classifier)
    dictionary = dictionary_of(classifier)
    x = pictures()
    codes = dictionary.sparse(exact.features(x.double()))
    traces = Fact(mode="replace")(Traced(classifier, (dictionary,)), x)
    targets = torch.tensor([t.target for t in traces])
    coefficients = class_coefficients(torch.zeros(3, 5, dtype=torch.float64), targets)
    exact_dictionary = dictionary_of(exact)
    assert torch.equal(exact_dictionary.decoder, dictionary.decoder)
    found = cached_contributions(exact, exact_dictionary, codes, coefficients)
    for row, trace in zip(found, traces, strict=True):
        torch.testing.assert_close(row, values(trace, 24), atol=1e-12, rtol=1e-9)
    # Held at the real features, the shares are those of the mode that keeps the error.
    residual = Fact()(Traced(classifier, (dictionary,)), x, targets)
    found = cached_contributions(exact, exact_dictionary, codes, coefficients, features=exact.features(x.double()))
    for row, trace in zip(found, residual, strict=True):
        torch.testing.assert_close(row, values(trace, 24), atol=1e-12, rtol=1e-9)


def test_a_contrast_from_the_cache_is_the_difference():
    exact = in_double(bcos())
    dictionary = dictionary_of(exact)
    codes = dictionary.sparse(exact.features(pictures().double()))
    targets, others = torch.tensor([0, 1, 2]), torch.tensor([1, 4, 0])
    blank = torch.zeros(3, 5, dtype=torch.float64)
    one, two = (cached_contributions(exact, dictionary, codes, class_coefficients(blank, t)) for t in (targets, others))
    both = cached_contributions(exact, dictionary, codes, class_coefficients(blank, targets, others))
    torch.testing.assert_close(both, one - two)


def test_features_of_another_layer_have_no_closed_form():
    exact = in_double(bcos()).at("stages.0")
    dictionary = dictionary_of(exact)
    codes = dictionary.sparse(exact.features(pictures().double()))
    with pytest.raises(ModelError, match="no closed form"):
        cached_contributions(exact, dictionary, codes, torch.ones(3, 5))


def test_a_vision_transformer_books_its_position_embedding_and_a_later_layer_has_none():
    classifier = bcos("vit with a stem")
    x = pictures()
    early = HeldNetwork(classifier, x, hold="bcos")
    pulled = early.pull_logits(class_coefficients(early.logits))
    assert set(pulled.constants) == {"position embedding"}
    assert float(pulled.constants["position embedding"].abs().min()) > 1e-6
    pixels = (pulled.gradient * early.encoded).flatten(1).sum(1)
    torch.testing.assert_close(pixels + pulled.constants["position embedding"], pulled.value, atol=1e-12, rtol=1e-9)
    late = Fact(layer="0.transformer.encoder_0")(classifier, x)
    assert all(t.remainders.get("position embedding", 0.0) == 0.0 for t in late)


@pytest.mark.parametrize("layer", ["conv", "norm", "act"])
def test_a_centred_batch_norm_is_booked_as_bias_and_said_so(layer):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            base = bcos_zoo.make("small resnet")
            self.encode, self.conv = base.encode, base.stem[0]
            self.norm, self.act = nn.BatchNorm2d(4), nn.Identity()
            self.stages, self.fc = base.stages, base.fc
            self.pool, self.flatten, self.logit_layer = base.pool, base.flatten, base.logit_layer

        def forward(self, x):
            x = self.stages(self.act(self.norm(self.conv(self.encode(x)))))
            return self.logit_layer(self.flatten(self.pool(self.fc(x))))

    torch.manual_seed(0)
    network = Centred()
    network.norm.double().running_mean.uniform_(0.2, 0.5)
    classifier = Classifier(network.eval(), size=16, mean=(0.0,) * 3, std=(1.0,) * 3, link="sigmoid")
    for trace in Fact(layer=layer)(classifier, pictures()):
        assert completeness_gap(trace) < 1e-9
        assert any("centred batch norm" in note for note in trace.notes)
        # Only what lies behind the layer is in no channel of it.
        assert (trace.remainders.get("biases", 0.0) != 0) == (layer == "conv")


def test_an_ordinary_network_is_refused_with_a_way_out():
    classifier = Classifier(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), size=8
    )
    with pytest.raises(ModelError, match="no B-cos layers"):
        Fact()(classifier, pictures(1, 8))


def test_dictionaries_of_other_networks_and_layers_are_refused():
    one, other = bcos("small resnet"), bcos("basic resnet")
    with pytest.raises(InputError, match="other weights"):
        Fact()(Traced(one, (dictionary_of(other),)), pictures())
    with pytest.raises(InputError, match="layer"):
        Fact(layer="stages.9")(one, pictures())


def test_latents_that_are_never_active_leave_everything_to_the_remainders():
    classifier = bcos()
    dictionary = dictionary_of(classifier)
    silent = dictionary_of(classifier)
    silent.encoder.zero_()
    trace = Fact()(Traced(classifier, (silent,)), pictures(1))[0]
    assert trace.contributions == ()
    assert trace.remainders["reconstruction error"] + trace.remainders["logit bias"] == pytest.approx(trace.total)
    assert any("No latent of the dictionary is active" in note for note in trace.notes)
    assert Fact()(Traced(classifier, (dictionary,)), pictures(1))[0].contributions


def test_pictures_of_another_size_and_odd_values_are_refused():
    classifier = bcos()
    with pytest.raises(InputError, match="16 x 16"):
        Fact()(classifier, pictures(1, 24))
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        Fact()(classifier, pictures(1) * 255)
    for kwargs in ({"mode": "sum"}, {"k": 0}, {"k": True}):
        with pytest.raises(InputError):
            Fact(**kwargs)(classifier, pictures(1))
    with pytest.raises(InputError, match="one target index"):
        Fact()(classifier, pictures(2), torch.tensor([1]))
    with pytest.raises(InputError, match="whole numbers"):
        Fact()(classifier, pictures(1), torch.tensor([1.0]))
    assert Fact()(classifier, pictures(0)) == []


def test_the_strongest_concepts_and_the_sum_of_the_others():
    classifier = bcos()
    lens = traced(classifier, None)
    x = pictures()
    for every, few in zip(Fact()(lens, x), Fact(k=3)(lens, x), strict=True):
        assert few.contributions == every.contributions[:3]
        assert few.remainders["other concepts"] == pytest.approx(sum(c.value for c in every.contributions[3:]))
        assert few.total == every.total


def test_names_of_the_lens_are_used():
    classifier = bcos()
    dictionary = dictionary_of(classifier)
    lens = Traced(classifier, (dictionary,), {k: f"word {k}" for k in range(0, 24, 2)})
    for trace in Fact()(lens, pictures()):
        for concept in trace.contributions:
            wanted = f"latent {concept.latent}" if concept.latent % 2 else f"word {concept.latent}"
            assert concept.name == wanted


def test_replace_says_what_the_network_itself_gives():
    classifier = bcos()
    traces = Fact(mode="replace")(traced(classifier, None), pictures())
    logits = classifier.logits(pictures())
    for trace, row in zip(traces, logits, strict=True):
        assert trace.target == int(row.argmax())
        assert any(f"{float(row.max()):.3f}" in note for note in trace.notes)


def test_it_is_registered_under_its_name():
    assert get_method("fact").factory is Fact
    assert get_method("fact").kind == "trace"


def test_codes_in_single_precision_would_not_be_exact():
    """Why codes are computed again in double precision."""
    classifier = bcos()
    dictionary = dictionary_of(classifier)
    exact = in_double(classifier)
    x = pictures()
    z = exact.features(x.double())
    fine, coarse = dictionary.sparse(z), dictionary.sparse(z.float())
    rounded = SparseCodes(coarse.indices, coarse.values.double(), coarse.latents, coarse.grid)
    gap = (dictionary.decode(rounded) - dictionary.decode(fine)).abs().max() / dictionary.decode(fine).abs().max()
    assert float(gap) > 1e-9


def test_the_logit_bias_is_apart_and_cancels_in_a_contrast():
    classifier = bcos()
    trace = Fact()(classifier, pictures(1), torch.tensor([2]))[0]
    assert trace.remainders["logit bias"] == pytest.approx(-torch.log(torch.tensor(4.0)).item())
    _, before = run_to(in_double(classifier).module, pictures(1).double(), None)
    before = before.detach()
    assert trace.total - trace.remainders["logit bias"] == pytest.approx(float(before[0, 2]), abs=1e-9)
    against = Fact()(classifier, pictures(1), torch.tensor([2]), contrasts=torch.tensor([0]))[0]
    assert "logit bias" not in against.remainders
    assert against.total == pytest.approx(float(before[0, 2] - before[0, 0]), abs=1e-9)


def test_the_error_is_counted_against_the_logit_without_its_bias():
    trace = Fact()(traced(bcos(), None), pictures(1))[0]
    value = trace.total - trace.remainders["logit bias"]
    share = abs(trace.remainders["reconstruction error"] / value)
    assert any(f"is {share:.0%} of the logit without its bias" in note for note in trace.notes)
