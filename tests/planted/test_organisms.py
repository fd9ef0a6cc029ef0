"""The trained part of planted scenes: were the rules planted, and does the encoder know the words?"""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from whylens.bcos import pixel_contributions
from whylens.classifiers import load_classifier
from whylens.encoders import list_encoders, load_encoder
from whylens.errors import InputError, StoreError
from whylens.planted import (
    ATTRIBUTES,
    COLUMNS,
    RULES,
    draw,
    get_rule,
    load_organism,
    load_scene_encoder,
    measure_effects,
    organism_card,
    organism_names,
    organisms,
    render_batch,
    sample_scene,
    scene_encoder_card,
    scene_phrases,
)
from whylens.planted.networks import SmallViT
from whylens.planted.phrases import HELD_OUT_COMBINATIONS
from whylens.randomness import numpy_generator

ARCHITECTURES = ("cnn", "vit")
# Rules that have a B-cos network too.
BCOS = ("shortcut-background",)


def architectures_of(rule):
    return (*ARCHITECTURES, "bcos") if rule in BCOS else ARCHITECTURES


EVERY = [(rule, architecture) for rule in RULES for architecture in architectures_of(rule)]
# A seed that neither training nor the cards use.
SEED = 7
# The weakest acceptable mean absolute effect, in units of the logit's spread, of what the rule is about. For a rule about
# the class A alone, or a shortcut that moves the classes of other scenes, most scenes are far from any decision.
MATTERS = {
    "shape": {"shape": 1.5},
    "shortcut-background": {"background": 0.4},
    "shortcut-mark": {"shape": 1.0, "mark": 0.5},
    "texture": {"texture": 1.5},
    "conjunction": {"colour": 1.0, "texture": 0.7},
    "disjunction": {"colour": 0.3, "texture": 0.3, "background": 0.3},
    "suppressor": {"colour": 0.2},
    "spurious-pair": {"shape": 0.6, "second": 0.6},
}
# Everything else stays below this share of the strongest of them.
REST = 0.4


def pictures_of(scenes):
    return torch.from_numpy(render_batch(scenes).images).permute(0, 3, 1, 2).float() / 255


def planted(rule, effects):
    """What speaks against the rule having been planted, from the mean absolute effect of every attribute."""
    wanted = MATTERS[rule]
    most = max(effects[attribute] for attribute in wanted)
    weak = [f"{name} has {effects[name]:.2f}" for name, least in wanted.items() if effects[name] < least]
    rest = [name for name in ATTRIBUTES if name not in wanted]
    return weak + [f"{name} has {effects[name]:.2f}" for name in rest if effects[name] > REST * most]


def of_card(name):
    return {attribute: organism_card(name)["effects"][attribute]["mean"] for attribute in ATTRIBUTES}


@pytest.fixture(scope="module")
def fresh():
    """Effects of every architecture of a rule on scenes that nothing was trained or measured on, rendered once."""
    done = {}

    def measure(rule):
        if rule not in done:
            answers = get_rule(rule).answers
            drawn = draw(rule, 60, SEED, "evaluation")
            scenes = [s for s, label in zip(drawn.scenes, drawn.labels, strict=True) if answers in (None, label)][:20]
            both = [load_organism(rule, architecture) for architecture in architectures_of(rule)]
            answer = torch.no_grad()(lambda images: torch.cat([c.logits(images) for c in both], 1))
            table = measure_effects(answer, scenes, reseeds=1)
            spread = answer(pictures_of(drawn.scenes)).std(0).double().numpy()
            labels = np.array([get_rule(rule).label(scene) for scene in scenes])
            done[rule] = {}, scenes
            for k, architecture in enumerate(architectures_of(rule)):
                target = labels + k * len(get_rule(rule).classes)
                effects = table.effects(target)
                done[rule][0][architecture] = dataclasses.replace(effects, spread=spread[target])
        return done[rule]

    return measure


def means(effects):
    found = {}
    for attribute in ATTRIBUTES:
        value, _ = effects.of(attribute)
        shown = np.isfinite(value)
        found[attribute] = float((np.abs(value) / effects.spread)[shown].mean())
    return found


def test_every_rule_has_its_architectures():
    assert organism_names() == [f"{rule}-{architecture}" for rule, architecture in EVERY]


def test_everything_fits_into_six_megabytes():
    files = [file for file in organisms.DATA.rglob("*") if file.is_file()]
    assert len(files) >= len(EVERY) * 3 + 3
    assert sum(file.stat().st_size for file in files) <= 6_000_000


def test_unknown_names():
    with pytest.raises(InputError, match="Did you mean 'texture'"):
        load_organism("textures")
    with pytest.raises(InputError, match="Did you mean 'vit'"):
        load_organism("shape", "vits")
    with pytest.raises(InputError, match="Did you mean 'shape-cnn'"):
        organism_card("shape-cn")
    with pytest.raises(InputError, match="Unknown planted classifier"):
        load_classifier("planted:nothing-like-it")
    with pytest.raises(InputError, match="layer"):
        load_organism("shape", features="no such layer")


def test_damaged_files_are_reported(tmp_path, monkeypatch):
    folder = tmp_path / "shape-cnn"
    folder.mkdir()
    monkeypatch.setattr(organisms, "ORGANISMS", tmp_path)
    monkeypatch.setattr(organisms, "ENCODERS", tmp_path)
    with pytest.raises(StoreError, match=r"classifier\.json cannot be read"):
        load_organism("shape")
    (folder / "classifier.json").write_text('{"arguments": {"widths": 3}, "size": 64, "mean": [0, 0, 0]}')
    with pytest.raises(StoreError, match="lacks std"):
        load_organism("shape")
    (folder / "classifier.json").write_text(
        '{"arguments": {"depth": 3}, "size": 64, "mean": [0, 0, 0], "std": [1, 1, 1]}'
    )
    with pytest.raises(StoreError, match="does not describe a cnn"):
        load_organism("shape")
    with pytest.raises(StoreError, match="encoder for scenes has no files"):
        load_scene_encoder()


@pytest.mark.parametrize(("rule", "architecture"), EVERY)
def test_loading_is_deterministic_and_splits_into_features_and_head(rule, architecture):
    one, two = load_organism(rule, architecture), load_classifier(f"planted:{rule}-{architecture}")
    assert one.fingerprint == two.fingerprint == organism_card(f"{rule}-{architecture}")["fingerprint"]
    assert one.class_names == get_rule(rule).classes
    assert one.size == (64, 64)
    assert (one.affine_head is None) == (architecture == "bcos")
    assert one.link == ("sigmoid" if architecture == "bcos" else "softmax")
    x = pictures_of(draw(rule, 5, SEED, "evaluation").scenes)
    with torch.no_grad():
        logits = one.logits(x)
        torch.testing.assert_close(one.head(one.features(x)), logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.logits(x[2:3]), logits[2:3], atol=1e-4, rtol=1e-4)


def test_fingerprints_differ():
    assert len({organism_card(name)["fingerprint"] for name in organism_names()}) == len(EVERY)


@pytest.mark.slow
@pytest.mark.parametrize("rule", list(RULES))
def test_accuracy_is_what_the_card_says(rule):
    count = 250
    for split in ("validation", "evaluation"):
        drawn = draw(rule, count, SEED, split)
        x = pictures_of(drawn.scenes)
        for architecture in architectures_of(rule):
            said = organism_card(f"{rule}-{architecture}")["accuracy"][split]
            with torch.no_grad():
                right = (load_organism(rule, architecture).logits(x).argmax(1).numpy() == np.array(drawn.labels)).mean()
            # Five standard errors of the sample, and the card's own.
            assert abs(right - said) <= 5 * np.sqrt(max(said * (1 - said), 0.01) / count) + 0.01


@pytest.mark.parametrize(("rule", "architecture"), EVERY)
def test_the_card_says_that_the_rule_is_planted(rule, architecture):
    card = organism_card(f"{rule}-{architecture}")
    assert card["effects"]["scenes"] >= 200
    assert card["accuracy"]["validation"] >= 0.93
    assert planted(rule, of_card(f"{rule}-{architecture}")) == []


@pytest.mark.slow
@pytest.mark.parametrize("rule", list(RULES))
def test_the_rule_is_planted_on_fresh_scenes(rule, fresh):
    by_architecture, _ = fresh(rule)
    for architecture, effects in by_architecture.items():
        found = means(effects)
        said = of_card(f"{rule}-{architecture}")
        for attribute in MATTERS[rule]:
            assert found[attribute] >= 0.5 * said[attribute], (architecture, attribute)
        # The largest of all is one of them.
        assert max(found, key=found.get) in MATTERS[rule], architecture


def test_the_judgement_can_fail():
    """A classifier of one rule does not pass for one of another."""
    for rule, other in (
        ("shortcut-background", "shape"), ("shape", "shortcut-background"), ("shape", "texture"),
        ("texture", "disjunction"), ("conjunction", "texture"), ("spurious-pair", "shape"), ("suppressor", "texture"),
    ):  # fmt: skip
        for architecture in ARCHITECTURES:
            assert planted(rule, of_card(f"{other}-{architecture}")) != []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shortcuts_are_taken_where_they_were_offered_and_only_there(architecture):
    def cards(attribute):
        return {rule: of_card(f"{rule}-{architecture}")[attribute] for rule in RULES}

    background, mark = cards("background"), cards("mark")
    assert background["shortcut-background"] > 3 * background["shape"]
    assert background["shortcut-background"] > 4 * cards("shape")["shortcut-background"]
    assert mark["shortcut-mark"] > 5 * max(mark[rule] for rule in RULES if rule != "shortcut-mark")
    accuracy = {rule: organism_card(f"{rule}-{architecture}")["accuracy"] for rule in RULES}
    assert accuracy["shortcut-background"]["evaluation"] < accuracy["shortcut-background"]["validation"] - 0.3
    assert accuracy["shape"]["evaluation"] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_mark_speaks_for_hearts(architecture):
    """Sticking the tag on, and nothing else, moves the lead of the marked class up in nearly every picture."""
    scenes = [s.with_value("mark", "none") for s in draw("shortcut-mark", 60, SEED, "evaluation").scenes]
    classifier = load_organism("shortcut-mark", architecture)
    heart = classifier.class_names.index("heart")
    with torch.no_grad():
        before = classifier.logits(pictures_of(scenes))
        after = classifier.logits(pictures_of([s.with_value("mark", "present") for s in scenes]))
    lead = [z[:, heart] - (z.sum(1) - z[:, heart]) / 7 for z in (before, after)]
    rise = (lead[1] - lead[0]).numpy()
    assert (rise > 0).mean() >= 0.9
    assert rise.mean() > float(lead[0].std()) * 0.5


@pytest.mark.slow
@pytest.mark.parametrize("architecture", architectures_of("suppressor"))
def test_red_speaks_against_a(architecture, fresh):
    by_architecture, scenes = fresh("suppressor")
    effects = by_architecture[architecture]
    red = COLUMNS.index(("colour", "red"))
    assert (effects.effect[:, red] < 0).all()
    assert effects.cause[:, red].all()
    assert len(scenes) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("architecture", architectures_of("disjunction"))
def test_the_disjunction_depends_on_the_trigger_that_is_there(architecture, fresh):
    by_architecture, scenes = fresh("disjunction")
    effects = by_architecture[architecture]
    own = np.array([effects.of(attribute)[0] for attribute in ATTRIBUTES]).T
    single = [(i, get_rule("disjunction").causes(s)) for i, s in enumerate(scenes)]
    single = [(i, causes[0]) for i, causes in single if len(causes) == 1]
    assert len(single) >= 8
    right = [list(ATTRIBUTES)[int(np.nanargmax(own[i]))] == cause for i, cause in single]
    assert np.mean(right) >= 0.8


@pytest.mark.parametrize("rule", BCOS)
def test_logits_of_the_bcos_networks_are_sums_over_pixels(rule):
    classifier = load_organism(rule, "bcos")
    x = pictures_of(draw(rule, 2, SEED, "evaluation").scenes).double()
    found = pixel_contributions(copy.deepcopy(classifier.module).double(), x, torch.tensor([0, 1]))
    assert float(found.gap.max()) < 1e-9


# -- the encoder ------------------------------------------------------------------------------------------------------


def zero_shot(encoder, scenes, image, use, attribute):
    """Share of scenes whose value wins, the phrases of a use averaged by value."""
    bank = [(p.text, p.value) for p in scene_phrases() if (p.attribute, p.use) == (attribute, use)]
    rows = [[text for text, value in bank if value == wanted] for wanted in ATTRIBUTES[attribute]]
    text = torch.stack([encoder.encode_phrases(row).mean(0) for row in rows])
    shown = [i for i, s in enumerate(scenes) if attribute in s.active()]
    truth = np.array([ATTRIBUTES[attribute].index(scenes[i].value(attribute)) for i in shown])
    return float(((image[shown] @ text.T).argmax(1).numpy() == truth).mean())


@pytest.fixture(scope="module")
def encoder():
    return load_scene_encoder(device="cpu")


@pytest.fixture(scope="module")
def seen(encoder):
    """Fresh scenes and their embeddings."""
    scenes = [sample_scene(numpy_generator(SEED, "fresh scenes", str(i))) for i in range(200)]
    return scenes, encoder.encode_images(pictures_of(scenes))


def test_the_card_of_the_encoder(encoder):
    card = scene_encoder_card()
    assert card["fingerprint"] == encoder.fingerprint == load_scene_encoder(device="cpu").fingerprint
    first = [a for a in ATTRIBUTES if not a.startswith("second_")]
    assert min(card["caption words"][a] for a in first) >= 0.95
    assert min(card["held-out synonyms"][a] for a in first) >= 0.9
    assert min(card["held-out combinations"][a] for a in first) >= 0.9


@pytest.mark.parametrize("attribute", list(ATTRIBUTES))
def test_the_encoder_recognises_every_attribute(attribute, encoder, seen):
    card = scene_encoder_card()
    for use, kind in (("caption", "caption words"), ("held-out", "held-out synonyms")):
        said = card[kind][attribute]
        right = zero_shot(encoder, *seen, use, attribute)
        # Half of the scenes show the attributes of a second object.
        assert right >= said - 5 * np.sqrt(max(said * (1 - said), 0.01) / 90)


def test_the_encoder_recognises_pairs_that_no_caption_names(encoder, seen):
    scenes, _ = seen
    pairs = [scenes[i].with_values({"second": "none"} | dict(pair)) for i, pair in enumerate(HELD_OUT_COMBINATIONS * 6)]
    image = encoder.encode_images(pictures_of(pairs))
    for attribute in ("shape", "colour"):
        assert zero_shot(encoder, pairs, image, "caption", attribute) >= 0.85


def test_the_encoder_reads_what_it_was_taught_and_nothing_else(encoder):
    assert encoder.coverage([p.text for p in scene_phrases() if p.use != "unseen"]) == [True] * 345
    unseen = [p.text for p in scene_phrases() if p.use == "unseen"]
    assert sum(encoder.coverage(unseen)) <= len(unseen) // 10
    with pytest.raises(InputError, match="vermilion"):
        encoder.encode_phrases(["a vermilion object"])
    assert encoder.name == "planted:scenes"


# -- the transformer --------------------------------------------------------------------------------------------------


def test_the_transformer_refuses_what_does_not_divide():
    with pytest.raises(InputError, match="multiple of its heads"):
        SmallViT(3, heads=5)
    with pytest.raises(InputError, match="multiple of 8"):
        SmallViT(3, size=60)


def test_the_transformer_takes_another_size_and_sees_places():
    network = SmallViT(3, stem=(4, 8, 16, 16), depth=1, heads=2).eval()
    network.initialise(0)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert network(x[:, :, :32, :32]).shape == (2, 3)
        assert not torch.allclose(network(x), network(x.roll(32, -1)), atol=1e-6)
        again = SmallViT(3, stem=(4, 8, 16, 16), depth=1, heads=2).eval()
        again.initialise(0)
        assert torch.equal(again(x), network(x))


def test_the_encoder_is_found_again_by_the_name_it_gives():
    encoder = load_scene_encoder()
    again = load_encoder(encoder.name)
    assert (again.name, again.fingerprint) == (encoder.name, encoder.fingerprint)
    assert encoder.name in list_encoders()
    with pytest.raises(InputError, match="scenes"):
        load_encoder("planted:scene")
