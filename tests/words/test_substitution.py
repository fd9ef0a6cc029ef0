"""Phrases substituted within exclusive groups: definitions, planted interactions, fallbacks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from words_worlds import FeatureClassifier, SpatialHead, make_linear

from whylens.alignment import Moments, Statistics, fit_aligner
from whylens.banks import ConceptBank
from whylens.errors import InputError
from whylens.words import FaithTrace, substitution
from whylens.words.contrast import contrast_of
from whylens.words.control import null_heads, random_head_control
from whylens.words.directions import directions
from whylens.words.question import ask
from whylens.words.substitution import EXCLUSIVE, STEPS, USUALLY, _patterns, substitution_of
from whylens.words.tables import tables_of

COLOURS, TEXTURES, WIDTH, FEATURES = 4, 3, 24, 10
NAMES = [f"colour {i}{v}" for i in range(COLOURS) for v in "ab"] + [
    f"texture {i}{v}" for i in range(TEXTURES) for v in "ab"
]
GROUPS = ["colour"] * 2 * COLOURS + ["texture"] * 2 * TEXTURES + ["thing"] * 4


class Colours:
    """Pictures of a colour and a texture; features know "colour 0", "texture 0" and both at once, nothing else."""

    def __init__(self, count: int = 600) -> None:
        generator = torch.Generator().manual_seed(4)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        values, _ = torch.linalg.qr(randn(WIDTH, WIDTH))
        self.value = values[: COLOURS + TEXTURES]
        self.things = values[COLOURS + TEXTURES : COLOURS + TEXTURES + 4]
        self.ground = values[-1]
        self.colour = torch.randint(COLOURS, (count,), generator=generator)
        self.texture = torch.randint(TEXTURES, (count,), generator=generator)
        present = (torch.rand(count, 4, generator=generator) < 0.2).float()
        shown = self.value[self.colour] + self.value[COLOURS + self.texture]
        self.embeddings = normalize(
            self.ground + shown + 0.2 * present @ self.things + 0.03 * randn(count, WIDTH), dim=1
        )
        self.mix = randn(4, FEATURES)
        self.thing = randn(4, FEATURES) * 0.1
        self.features = self.seen(self.colour, self.texture) + present @ self.thing + 0.02 * randn(count, FEATURES)
        synonyms = self.value.repeat_interleave(2, 0) + 0.1 * randn(2 * len(self.value), WIDTH) / WIDTH**0.5
        self.text = normalize(torch.cat([synonyms, self.things]) + 0.3 * self.ground, dim=1)
        moments = Moments(FEATURES, WIDTH)
        moments.update(self.features[:500], self.embeddings[:500])
        self.aligner = fit_aligner(moments, self.features[500:], self.embeddings[500:], minimum_r2=-1.0)

    def seen(self, colour: Tensor, texture: Tensor) -> Tensor:
        """Features of a colour and a texture."""
        red, striped = (colour == 0).float(), (texture == 0).float()
        return torch.stack([torch.ones_like(red), red, striped, 2 * red * striped], 1) @ self.mix

    def lens(
        self, head: nn.Module, *, affine: bool = True, spatial: bool = False, references: int = 500
    ) -> SimpleNamespace:
        names = (*NAMES, *(f"thing {i}" for i in range(4)))
        kept = {"reference_features": self.features[:references], "reference_embeddings": self.embeddings[:references]}
        return SimpleNamespace(
            classifier=FeatureClassifier(head, FEATURES, affine=affine, spatial=spatial),
            aligner=self.aligner,
            bank=ConceptBank(names, tuple(GROUPS), ("test",) * len(names), name="colours"),
            embeddings=self.text,
            statistics=Statistics.compute(self.aligner, self.features[500:], self.embeddings[500:], self.text),
            **(kept if references else {}),
        )


@pytest.fixture(scope="module")
def world() -> Colours:
    return Colours()


def head_of(rows: Tensor) -> nn.Linear:
    return make_linear(rows)


@pytest.fixture(scope="module")
def lens(world: Colours) -> SimpleNamespace:
    """Class 0 is "colour 0 and texture 0", class 1 is "not colour 0", class 2 something else."""
    dual = torch.linalg.pinv(world.mix)
    return world.lens(head_of(torch.stack([dual[:, 3], -dual[:, 1] - dual[:, 3], dual[:, 2]])))


def slow_softmax(lens: SimpleNamespace, u: np.ndarray, groups: list[list[int]]) -> np.ndarray:
    """Softmaxes of one picture, group after group, written out in fp64."""
    e, references = lens.embeddings.double().numpy(), lens.reference_embeddings.double().numpy()
    rows = []
    for members in groups:
        all_of_them = references @ e[members].T
        best, mean = all_of_them.max(1).mean(), all_of_them.mean()
        steps = STEPS / (best - mean)
        powers = np.exp(steps * (e[members] @ u))
        rows.append(powers / (powers.sum() + np.exp(steps * (best + mean) / 2)))
    return np.concatenate(rows)


def test_substitutions_equal_their_definition(world: Colours, lens: SimpleNamespace) -> None:
    made = substitution_of(tables_of(lens))
    assert made is not None
    groups = [[t for t, g in enumerate(GROUPS) if g == name] for name in ("colour", "texture")]
    assert made.index.tolist() == groups[0] + groups[1]
    n = len(made.index)
    q = np.stack([slow_softmax(lens, u, groups) for u in lens.reference_embeddings.double().numpy()])
    picture = slow_softmax(lens, world.embeddings[550].double().numpy(), groups)
    got = made.softmax(world.embeddings[550:551])
    np.testing.assert_allclose(got[0].numpy(), picture, atol=1e-4)

    usual = np.zeros((n, n))
    places = [list(range(8)), list(range(8, n))]
    for part in places:
        for t in part:
            usual[t, part] = np.average(q[:, part], axis=0, weights=q[:, t])
    shown = [min(1.0, picture @ usual[t] / (usual[t] @ usual[t])) for t in range(n)]
    np.testing.assert_allclose(made.shown(got)[0].numpy(), shown, atol=1e-3)

    lengths = [(q[:, p] ** 2).sum(1).mean() for p in places]
    main, joint = made.kernel.main.numpy(), made.kernel.joint.numpy()

    def kernel(a: np.ndarray) -> np.ndarray:
        likeness = [q[:, p] @ a[p] / x for p, x in zip(places, lengths, strict=True)]
        product = made.kernel.weight * (1 + joint[0] * likeness[0]) * (1 + joint[1] * likeness[1])
        return np.asarray(main[0] * likeness[0] + main[1] * likeness[1] + product)

    coefficients = made.coefficients.double().numpy()

    def features(shown: np.ndarray, part: list[int], t: int) -> np.ndarray:
        changed = shown.copy()
        changed[part] = usual[t, part]
        return np.asarray(kernel(changed) @ coefficients)

    slow = []
    for part in places:
        block = usual[np.ix_(part, part)]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        alike = block @ block.T
        for t in range(len(part)):
            row = np.zeros(FEATURES)
            for share, shown_there in ((1 - USUALLY, picture), (USUALLY, q.mean(0))):
                values = np.stack([features(shown_there, part, s) for s in part])
                row += share * (values[t] - np.average(values, axis=0, weights=(1 - alike[t]) / alike.sum(0)))
            slow.append(row)
    np.testing.assert_allclose(made.directions(got)[0].numpy(), np.array(slow), atol=1e-3 * np.abs(slow).max())


def test_a_value_counts_once_however_many_words_it_has() -> None:
    """Of a value with one, three and six synonyms each other value is half of the alternative."""
    generator = torch.Generator().manual_seed(0)
    words = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2, 2])
    shown = torch.randint(3, (300,), generator=generator)
    softmax = (words == shown[:, None]).double()
    softmax = softmax / softmax.sum(1, keepdim=True)
    usual, alternatives = _patterns(softmax, (slice(0, 10),))
    torch.testing.assert_close(usual, ((words == words[:, None]).double() / torch.tensor([1.0, 3, 6])[words].double()))
    by_value = torch.stack([alternatives[:, words == v].sum(1) for v in range(3)], 1)
    expected = (words[:, None] != torch.arange(3)).double() / 2
    torch.testing.assert_close(by_value, expected)
    # Nothing but synonyms: no alternative at all, rather than rounding errors blown up.
    _, none = _patterns(softmax[shown == 1][:, 1:4], (slice(0, 3),))
    assert float(none.abs().max()) == 0.0


def true_effect(world: Colours, row: Tensor, colour: int, texture: int, attribute: str) -> float:
    """The logit of a picture less its mean over the other values of an attribute."""

    def logit(c: int, t: int) -> float:
        return float(world.seen(torch.tensor([c]), torch.tensor([t]))[0] @ row)

    others = range(COLOURS) if attribute == "colour" else range(TEXTURES)
    own = colour if attribute == "colour" else texture
    changed = [logit(v, texture) if attribute == "colour" else logit(colour, v) for v in others if v != own]
    return logit(colour, texture) - float(np.mean(changed))


def usual_effect(world: Colours, row: Tensor, colour: int, texture: int, attribute: str) -> float:
    """The same with the share that is taken among what pictures usually show: every value of the other attribute."""
    if attribute == "colour":
        usually = np.mean([true_effect(world, row, colour, t, attribute) for t in range(TEXTURES)])
    else:
        usually = np.mean([true_effect(world, row, c, texture, attribute) for c in range(COLOURS)])
    return float((1 - USUALLY) * true_effect(world, row, colour, texture, attribute) + USUALLY * usually)


def test_reasons_that_are_each_enough_gain_from_what_is_usual(
    world: Colours, lens: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colour 0 or texture 0: where both are there neither changes the logit alone, and usually each would."""
    dual = torch.linalg.pinv(world.mix)
    either = dual[:, 1] + dual[:, 2] - dual[:, 3] / 2
    asked = world.lens(head_of(torch.stack([either, -either])))
    both = torch.nonzero((world.colour == 0) & (world.texture == 0))[:20, 0]
    assert len(both) == 20
    assert abs(true_effect(world, either, 0, 0, "colour")) < 1e-5
    assert abs(true_effect(world, either, 0, 0, "texture")) < 1e-5
    made = substitution_of(tables_of(asked))
    assert made is not None
    softmax = made.softmax(world.embeddings[both])
    mixed = (made.directions(softmax) @ either).mean(0)
    monkeypatch.setattr("whylens.words.substitution.USUALLY", 0.0)
    gained = (mixed - (made.directions(softmax) @ either).mean(0)).tolist()
    for attribute, named in (("colour", 0), ("texture", 8)):
        expected = usual_effect(world, either, 0, 0, attribute)
        assert expected > 0.1
        for synonym in (0, 1):
            assert gained[named + synonym] > expected / 2


def test_influence_is_the_effect_in_this_picture(world: Colours, lens: SimpleNamespace) -> None:
    rows = torch.arange(500, 560)
    z, u = world.features[rows], world.embeddings[rows]
    pairs = list(zip(world.colour[rows].tolist(), world.texture[rows].tolist(), strict=True))
    method = FaithTrace(k=None, control=False)
    for target in (0, 1):
        targets = torch.full((len(rows),), target)
        found = method.from_features(lens, z, lens.classifier.head(z).detach(), targets, embeddings=u)
        row = lens.classifier.affine_head.weight[target]
        for words, (colour, texture) in zip(found, pairs, strict=True):
            assert words.protocol == "faithtrace/substitution/shown/logit@2"
            influence = {p.text: p.influence for p in words}
            for attribute, value in (("colour", colour), ("texture", texture)):
                expected = usual_effect(world, row, colour, texture, attribute)
                for synonym in "ab":
                    assert influence[f"{attribute} {value}{synonym}"] == pytest.approx(expected, abs=0.6)
            # What the picture does not show is no reason.
            scores = {p.text: p.score for p in words}
            absent = [t for t in NAMES if t[:-1] not in (f"colour {colour}", f"texture {texture}")]
            assert max(abs(scores[t]) for t in absent) < 0.1


def test_plain_directions_cannot_say_it(world: Colours, lens: SimpleNamespace) -> None:
    """The same influence for every picture, whether or not the other half of the pair is there."""
    z = world.features[:60]
    found = FaithTrace(direction="reverse-contrast", k=None, control=False).from_features(
        lens, z, lens.classifier.head(z).detach(), torch.zeros(60, dtype=torch.long), embeddings=world.embeddings[:60]
    )
    influence = torch.tensor([[p.influence for p in sorted(w, key=lambda p: p.text)] for w in found])
    assert float(influence.std(0).max()) < 1e-5


def test_open_groups_score_as_before(world: Colours, lens: SimpleNamespace) -> None:
    assert float(contrast_of(tables_of(lens)).usual[-1]) >= EXCLUSIVE
    z, u = world.features[:5], world.embeddings[:5]
    logits = lens.classifier.head(z).detach()
    new = FaithTrace(k=None, control=False).from_features(lens, z, logits, embeddings=u)
    old = FaithTrace(k=None, control=False, direction="reverse-contrast", weighting="contrast").from_features(
        lens, z, logits
    )
    for a, b in zip(new, old, strict=True):
        before = {p.text: p.score for p in b}
        for phrase in a:
            if phrase.group == "thing":
                assert phrase.score == pytest.approx(before[phrase.text], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", ["no references", "few references", "nothing reads", "nothing explained"])
def test_without_substitutions_it_is_contrasts(world: Colours, lens: SimpleNamespace, case: str) -> None:
    head = lens.classifier.module
    other = {"no references": 0, "few references": 150}.get(case)
    asked = lens if other is None else world.lens(head, references=other)
    if case == "nothing explained":
        asked = world.lens(head)
        asked.reference_features = torch.randn(500, FEATURES, generator=torch.Generator().manual_seed(1))
        assert substitution_of(tables_of(asked)) is None
    z = world.features[:4]
    u = None if case == "nothing reads" else world.embeddings[:4]
    logits = head(z).detach()
    found = FaithTrace(k=None, control=False).from_features(asked, z, logits, embeddings=u)
    plain = FaithTrace(k=None, control=False, direction="reverse-contrast", weighting="contrast")
    expected = plain.from_features(asked, z, logits)
    for a, b in zip(found, expected, strict=True):
        assert a.protocol == b.protocol == "faithtrace/reverse-contrast/contrast/logit@1"
        assert [(p.text, p.score) for p in a] == [(p.text, p.score) for p in b]


def test_a_fit_that_is_no_number_is_not_used(world: Colours, lens: SimpleNamespace, monkeypatch) -> None:
    asked = world.lens(lens.classifier.module)
    nothing = float("nan")
    monkeypatch.setattr(substitution, "kernel_ridge", lambda k, y: (torch.full_like(y, nothing), nothing))
    assert substitution_of(tables_of(asked)) is None


def test_features_can_stand_in_for_the_picture(world: Colours, lens: SimpleNamespace) -> None:
    z = world.features[:3]
    logits = lens.classifier.head(z).detach()
    found = FaithTrace(k=None, control=False, reader="features").from_features(lens, z, logits)
    aligned = FaithTrace(k=None, control=False).from_features(lens, z, logits, embeddings=tables_of(lens).aligned(z))
    for a, b in zip(found, aligned, strict=True):
        assert a.protocol == "faithtrace/substitution/shown/logit@2"
        assert [p.text for p in a] == [p.text for p in b]


def test_the_batch_does_not_matter(world: Colours, lens: SimpleNamespace) -> None:
    z, u = world.features[:6], world.embeddings[:6]
    logits = lens.classifier.head(z).detach()
    method = FaithTrace(k=4, draws=100)
    together = method.from_features(lens, z, logits, embeddings=u)
    for i, words in enumerate(together):
        alone = method.from_features(lens, z[i : i + 1], logits[i : i + 1], embeddings=u[i : i + 1])[0]
        assert [p.text for p in words] == [p.text for p in alone]
        for a, b in zip(words, alone, strict=True):
            assert a.score == pytest.approx(b.score, rel=1e-4, abs=1e-5)
            assert a.p_value == pytest.approx(b.p_value, abs=0.03)


def test_every_reading_of_directions_agrees(world: Colours, lens: SimpleNamespace) -> None:
    tables = tables_of(lens)
    z, u = world.features[:3], world.embeddings[:3]
    made = directions(tables, "substitution", z, u)
    index = torch.arange(len(tables.text)).expand(3, -1)
    rows = made.compact(index)
    gradient = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(made.along(gradient), (rows @ gradient[:, :, None])[..., 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.squared_norms(), rows.square().sum(2), rtol=1e-3, atol=1e-5)
    assert made.per_picture


@pytest.mark.parametrize("affine", [True, False])
def test_control_equals_random_heads_one_by_one(world: Colours, lens: SimpleNamespace, affine: bool) -> None:
    if not affine:
        torch.manual_seed(0)
        lens = world.lens(nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 3)), affine=False)
    tables = tables_of(lens)
    z, u = world.features[:2], world.embeddings[:2]
    logits = lens.classifier.head(z).detach()
    question = ask(lens.classifier, z, logits, None, None)
    heads = null_heads(lens.classifier, tables, z, logits, question, 0, 60)
    assert heads is not None
    made = directions(tables, "substitution", z, u)
    weights = torch.rand(2, len(tables.text), generator=torch.Generator().manual_seed(3))
    weights[:, ::5] = 0
    control = random_head_control(tables, heads, made, weights)
    full = made.compact(torch.arange(len(tables.text)).expand(2, -1))
    for i in range(2):
        rows = heads.rows if affine else heads.rows[i]
        mean = heads.mean if affine else heads.mean[i]
        drawn = heads.length[i] * heads.coefficients @ rows + heads.total[i] * mean
        drawn = drawn + heads.shift[i][:, None] * heads.regression[i]
        scores = (drawn @ full[i].T) * weights[i]
        torch.testing.assert_close(control.maxima[i], scores.amax(1).clamp(min=0), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(control.minima[i], scores.amin(1).clamp(max=0), rtol=1e-3, atol=1e-4)


def test_maps_of_phrases_add_up_to_their_influence(world: Colours) -> None:
    torch.manual_seed(0)
    lens = world.lens(SpatialHead(FEATURES, 3), affine=False, spatial=True)
    classifier = lens.classifier
    maps = world.features[:2, :, None, None] + 0.1 * torch.randn(2, FEATURES, 3, 3)
    classifier.features_and_logits = lambda x: (maps, classifier.head(maps))
    classifier.pooled = lambda x: classifier.pool(maps)
    method = FaithTrace(k=None, control=False, reader="features")
    found = method.from_features(lens, maps, classifier.head(maps).detach())
    drawn = method.phrase_maps(lens, torch.zeros(2, 3, 8, 8), list(range(len(lens.embeddings))))
    for i, words in enumerate(found):
        for phrase in words:
            t = lens.bank.phrases.index(phrase.text)
            assert float(drawn[i, t].sum()) == pytest.approx(phrase.influence, rel=1e-3, abs=1e-5)


class Reader:
    """An encoder whose pictures are their own embeddings."""

    size = (1, WIDTH // 3)

    def __init__(self) -> None:
        self.read = 0

    def encode_images(self, x: Tensor) -> Tensor:
        self.read += len(x)
        return x.flatten(1)


def test_the_encoder_at_hand_reads_the_pictures(world: Colours, lens: SimpleNamespace) -> None:
    pictures = world.embeddings[:3].reshape(3, 3, 1, WIDTH // 3)
    assert FaithTrace().picture_embeddings(lens, pictures) is None
    holder = world.lens(lens.classifier.module)
    holder.reader = Reader()
    torch.testing.assert_close(FaithTrace().picture_embeddings(holder, pictures), world.embeddings[:3])
    for silent in (FaithTrace(reader="features"), FaithTrace(direction="reverse", weighting="presence")):
        assert silent.picture_embeddings(holder, pictures) is None
    assert holder.reader.read == 3
    loaded = world.lens(lens.classifier.module)
    loaded.load_encoder = Reader
    loaded.encoder = SimpleNamespace(source="open_clip:large")
    # An encoder that may be large is loaded when asked for, and once.
    assert FaithTrace().picture_embeddings(loaded, pictures) is None
    for _ in range(2):
        assert FaithTrace(reader="encoder").picture_embeddings(loaded, pictures) is not None
    assert loaded.__dict__["_reader"].read == 6
    loaded.encoder = SimpleNamespace(source="builtin:small")
    assert FaithTrace().picture_embeddings(loaded, pictures) is not None


def test_an_encoder_that_is_gone_is_done_without_or_named(world: Colours, lens: SimpleNamespace) -> None:
    def gone() -> None:
        raise InputError("The encoder is not the one this lens was fitted with.")

    left = world.lens(lens.classifier.module)
    left.load_encoder, left.encoder = gone, SimpleNamespace(source="builtin:small")
    pictures = torch.zeros(1, 3, 1, WIDTH // 3)
    with pytest.raises(InputError, match="not the one"):
        FaithTrace(reader="encoder").picture_embeddings(left, pictures)
    assert FaithTrace().picture_embeddings(left, pictures) is None
    with pytest.raises(InputError, match="cannot be loaded"):
        FaithTrace(reader="encoder").picture_embeddings(left, pictures)


def test_bad_input_is_named(world: Colours, lens: SimpleNamespace) -> None:
    z = world.features[:2]
    logits = lens.classifier.head(z).detach()
    with pytest.raises(InputError, match="reader"):
        FaithTrace(reader="encoders").from_features(lens, z, logits)
    with pytest.raises(InputError, match=r"\(2, 24\); they are \(3, 24\)"):
        FaithTrace().from_features(lens, z, logits, embeddings=world.embeddings[:3])
    with pytest.raises(InputError, match="no encoder"):
        FaithTrace(reader="encoder").picture_embeddings(lens, torch.zeros(1, 3, 8, 8))


def test_grey_pictures_are_read_as_colours_without_colour():
    from whylens.encoders import load_encoder
    from whylens.words.reader import embed_pictures

    encoder = load_encoder("builtin:tiny")
    for size in (encoder.size, (48, 80)):
        grey = torch.rand((2, 1, *size), generator=torch.Generator().manual_seed(2))
        assert torch.equal(embed_pictures(encoder, grey), embed_pictures(encoder, grey.expand(-1, 3, -1, -1)))
