"""ZS-NLE: planted maps from names to rows, leaving out, controls, and where the names come from."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize
from words_worlds import FeatureClassifier, SpatialHead, World, make_linear

from whylens.banks import load_given_bank
from whylens.checks import check_words_method
from whylens.errors import InputError
from whylens.lens import Lens
from whylens.words import ZsNle, text_lens
from whylens.words.class_names import class_name_embeddings
from whylens.words.name_maps import MlpNameMap, RidgeNameMap

M, D, CLASSES = 8, 20, 30


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def names(count=CLASSES, width=M, seed=1):
    return normalize(randn(count, width, seed=seed), dim=1)


def planted(noise=0.0):
    """Embeddings, rows that are an affine function of them, and that function's linear part."""
    e, b, offset = names(), randn(D, M, seed=2), randn(D, seed=3)
    return e, e @ b.T + offset + noise * randn(CLASSES, D, seed=4), b


def fit(e, w):
    return RidgeNameMap.fit(e, w, torch.arange(len(e)))


# --- the maps


def test_an_exact_linear_map_is_recovered():
    e, w, b = planted()
    found = fit(e, w)
    assert torch.allclose(found.linear().float(), b, atol=1e-4)
    assert found.r2 > 0.9999
    for without in ([3], [3, 17]):
        assert torch.allclose(found.linear(without).float(), b, atol=1e-4)


def test_unrelated_rows_are_not_predicted():
    assert fit(names(), randn(CLASSES, D, seed=9)).r2 < 0.2


@pytest.mark.parametrize("without", [[0], [5, 11], [29]])
@pytest.mark.parametrize("width", [M, 50])
def test_leaving_out_equals_fitting_again(without, width):
    """Against ridge regression solved from the normal equations in fp64, without the left-out rows."""
    e = names(width=width).double()
    w = e @ randn(width, D, seed=2).double() + 0.3 * randn(CLASSES, D, seed=4).double()
    found = fit(e, w)
    rest = [i for i in range(CLASSES) if i not in without]
    x, y = e[rest] - e[rest].mean(0), w[rest] - w[rest].mean(0)
    again = torch.linalg.solve(x.T @ x + found.ridge * torch.eye(width, dtype=torch.float64), x.T @ y).T
    assert torch.allclose(found.linear(without), again, atol=1e-8)


def test_the_error_of_names_left_out_is_measured_by_leaving_them_out():
    e, w, _ = planted(noise=0.5)
    found = fit(e.double(), w.double())
    missed = total = 0.0
    for i in range(CLASSES):
        rest = [j for j in range(CLASSES) if j != i]
        predicted = w[rest].double().mean(0) + found.linear([i]) @ (e[i].double() - e[rest].double().mean(0))
        missed += float((w[i] - predicted).square().sum())
        total += float((w[i].double() - w[rest].double().mean(0)).square().sum())
    assert found.r2 == pytest.approx(1 - missed / total, abs=1e-8)
    assert 0 < found.r2 < 1


def test_the_perceptron_learns_what_is_not_linear():
    e = names(120, 4)
    w = torch.stack([e[:, 0] * e[:, 1], e[:, 2].abs(), e[:, 3] ** 2], 1)
    bent = MlpNameMap.fit(e, w, torch.arange(120), hidden=32, seed=0)
    assert bent.r2 > 0.6
    assert fit(e, w).r2 < 0.3
    predicted = bent.predict(e)
    assert float((predicted - w).square().mean() / w.var(0).mean()) < 0.2
    assert torch.equal(bent.predict(e[:5]), bent.predict(e[:5]))
    assert not torch.equal(bent.predict(e, [0]), bent.predict(e))


@pytest.mark.parametrize(
    ("e", "w", "message"),
    [
        (names(4), randn(4, D), "at least 5 names with embeddings; there are 4"),
        (names()[:1].expand(9, M), randn(9, D), "embeddings of the class names are all alike"),
        (names(9), torch.ones(9, D), "rows of the head are all alike"),
        (names(9), torch.full((9, D), float("nan")), "rows of the head are not finite"),
    ],
)
def test_what_no_map_can_be_learnt_from(e, w, message):
    with pytest.raises(InputError, match=message):
        fit(e, w)
    with pytest.raises(InputError, match=message):
        MlpNameMap.fit(e, w, torch.arange(len(e)), hidden=8, seed=0)


# --- the method


class NamedWorld(World):
    """Classes whose names are texts of the same space as the phrases, rows that follow them."""

    def __init__(self, *, informative=True):
        super().__init__()
        self.names = normalize(self.randn(40, self.m) + 0.3, dim=1)
        rows = (self.names - self.names.mean(0)) @ self.map.T if informative else self.randn(40, self.d)
        self.head = make_linear(rows)
        self.classifier = FeatureClassifier(self.head, self.d, affine=True)
        self.classifier.class_names = tuple(f"name {i}" for i in range(40))

    def explain(self, method, targets=None, contrasts=None, count=30, seed=0):
        lens = self.lens(self.classifier)
        lens.class_embeddings = self.names
        z = self.sample(count)[1]
        return method.from_features(
            lens, z, self.head(z).detach(), targets, contrasts, [str(i) for i in range(count)], seed
        )


@pytest.mark.parametrize("mapping", ["ridge", "mlp"])
def test_the_phrase_nearest_to_the_explained_row_comes_first(mapping):
    """The planted map is linear and exact: scores must rank phrases as the true directions do."""
    world = NamedWorld()
    results = world.explain(ZsNle(mapping=mapping, k=None, diverse=False, control=False))
    true = world.text - world.text.mean(0)
    agreement = []
    for words in results:
        row = world.head.weight.detach()[words.target]
        wanted = normalize(true @ world.map.T, dim=1) @ row
        got = {p.text: p.score for p in words.phrases}
        active = [t for t in range(world.count) if got[f"phrase {t}"] != 0]
        if len(active) > 2:
            signs = [(got[f"phrase {t}"] > 0) == (float(wanted[t]) > 0) for t in active]
            agreement.append(sum(signs) / len(signs))
    assert len(agreement) > 10
    assert sum(agreement) / len(agreement) > (0.97 if mapping == "ridge" else 0.85)


def test_scores_are_the_formula():
    """An independent computation in fp64, each class left out by fitting again."""
    world = NamedWorld()
    lens = world.lens(world.classifier)
    lens.class_embeddings = world.names
    z = world.sample(6)[1]
    logits = world.head(z).detach()
    targets = torch.arange(6)
    results = ZsNle(k=None, control=False).from_features(lens, z, logits, targets, targets + 6)
    ridge = fit(world.names, world.head.weight).ridge
    for i, words in enumerate(results):
        rest = [c for c in range(40) if c not in (i, i + 6)]
        e, w = world.names[rest].double(), world.head.weight.detach()[rest].double()
        x = e - e.mean(0)
        b = torch.linalg.solve(x.T @ x + ridge * torch.eye(world.m, dtype=torch.float64), x.T @ (w - w.mean(0))).T
        d = normalize((world.text.double() - world.text.double().mean(0)) @ b.T, dim=1)
        shift = z[i].double() - world.z_mean.double()
        gradient = (world.head.weight[i] - world.head.weight[i + 6]).detach().double()
        wanted = (d @ normalize(shift, dim=0)).clamp(min=0) * (d @ gradient)
        got = {p.text: p.score for p in words.phrases}
        assert torch.tensor([got[f"phrase {t}"] for t in range(world.count)]).double() == pytest.approx(
            wanted, abs=2e-5
        )


def test_association_is_the_same_for_every_target():
    world = NamedWorld()
    method = ZsNle(scoring="association", leave_out=False, k=None)
    one = world.explain(method, torch.zeros(5, dtype=torch.long), count=5)
    world = NamedWorld()
    other = world.explain(method, torch.ones(5, dtype=torch.long), count=5)
    assert [[p.text for p in w.phrases] for w in one] == [[p.text for p in w.phrases] for w in other]
    assert all(abs(p.score) <= 1 + 1e-5 and p.p_value is None for w in one for p in w.phrases)
    assert all(not w.suppressing for w in world.explain(ZsNle(scoring="association")))


def test_a_random_head_supports_nearly_nothing():
    """Rows that have nothing to do with the names: any supported phrase is an error of the control."""
    world = NamedWorld(informative=False)
    results = world.explain(ZsNle(), count=200)
    wrong = sum(any(p.supported for p in (*w.phrases, *w.suppressing)) for w in results)
    # At most 5 % are promised; 30 of 200 would be beyond chance by far.
    assert wrong <= 25
    assert "chance" in " ".join(results[0].notes)


def test_without_leaving_out_there_is_no_control():
    results = NamedWorld().explain(ZsNle(leave_out=False), count=3)
    assert all(p.p_value is None for w in results for p in w.phrases)
    assert "has seen the row" in " ".join(results[0].notes)


def test_the_notes_tell_how_good_the_map_is():
    (words, *_) = NamedWorld().explain(ZsNle(), count=2)
    assert "learnt from 40 of 40 names" in words.notes[0]
    assert words.protocol == "zs_nle/ridge/shared/left-out@1"
    assert words.settings["class_embeddings"] is None


@pytest.mark.parametrize(
    "method",
    [
        ZsNle(),
        ZsNle(mapping="mlp", hidden=16),
        ZsNle(scoring="association"),
        ZsNle(k=None),
        ZsNle(diverse=False, leave_out=False),
    ],
    ids=repr,
)
def test_it_keeps_the_contract(method, lens):
    check_words_method(method, lens)


def test_it_is_explained_and_written_with_the_lens(lens, pictures, tmp_path):
    given = torch.nn.functional.normalize(randn(6, lens.encoder.width), dim=1)
    why = lens.explain(pictures[0], methods=["zs_nle"], settings={"zs_nle": {"class_embeddings": given}})
    assert why.results["zs_nle"].settings["class_embeddings"].startswith("given, sha256 ")
    why.save(tmp_path / "why.json")
    assert "zs_nle/ridge" in (tmp_path / "why.json").read_text()


# --- where names come from


def test_names_from_a_bank_of_given_embeddings(tmp_path):
    world = NamedWorld()
    lens = world.lens(world.classifier)
    save_file({"x": world.names[:25].contiguous()}, tmp_path / "embeddings.safetensors")
    (tmp_path / "phrases.json").write_text(json.dumps([f"Name {i}" for i in range(25)]))
    z = world.sample(3)[1]
    by_file = ZsNle(class_embeddings=str(tmp_path), control=False).from_features(lens, z, world.head(z).detach())
    vectors = {f"name {i}": 2 * world.names[i] for i in range(25)}
    by_name = ZsNle(class_embeddings=vectors, control=False).from_features(lens, z, world.head(z).detach())
    assert "25 of 40 names" in by_file[0].notes[0]
    for a, b in zip(by_file, by_name, strict=True):
        assert [p.score for p in a.phrases] == pytest.approx([p.score for p in b.phrases], abs=1e-5)
    assert by_file[0].settings["class_embeddings"] == str(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.full((40, 12), float("nan")), "at least 5 class names; it has 0 of 40"),
        (torch.ones(3, 12), r"must be \(40, 12\)"),
        (torch.ones(40, 7), "width 7"),
        ({"name 1": torch.ones(7)}, "width 7"),
        ({"unknown": torch.ones(12)}, "it has 0 of 40"),
        (None, "it has 0 of 40"),
    ],
)
def test_names_that_cannot_be_used(given, message):
    world = NamedWorld()
    z = world.sample(2)[1]
    with pytest.raises(InputError, match=message):
        ZsNle(class_embeddings=given).from_features(world.lens(world.classifier), z, world.head(z).detach())


def test_a_lens_whose_encoder_is_gone_says_so(lens, pictures):
    reference = dataclasses.replace(lens.encoder, source="builtin:gone")
    # Vectors that are stored with the lens would be taken first.
    stored = {f.name: None for f in dataclasses.fields(lens) if f.name == "class_embeddings"}
    bare = dataclasses.replace(lens, encoder=reference, **stored)
    with pytest.raises(InputError, match=r"encoder cannot be loaded.*Give class_embeddings"):
        bare.explain(pictures[0], methods=["zs_nle"])


@pytest.mark.parametrize("head", ["spatial", "perceptron"])
def test_a_head_that_is_not_affine_is_refused(head):
    world = NamedWorld()
    if head == "spatial":
        module, z = SpatialHead(world.d, 10), torch.randn(2, world.d, 3, 3)
    else:
        module, z = nn.Sequential(nn.Linear(world.d, 9), nn.ReLU(), nn.Linear(9, 10)), torch.randn(2, world.d)
    lens = world.lens(FeatureClassifier(module, world.d, affine=False, spatial=head == "spatial"))
    with pytest.raises(InputError, match="one affine map"):
        ZsNle().from_features(lens, z, module(z).detach())
    with pytest.raises(InputError, match="one affine map"):
        text_lens(lens.classifier, SimpleNamespace(width=4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mapping": "tree"}, "mapping"),
        ({"scoring": "x"}, "scoring"),
        ({"draws": 3}, "draws"),
        ({"hidden": 0}, "hidden"),
        ({"k": 0}, "k must"),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(InputError, match=message):
        NamedWorld().explain(ZsNle(**settings), count=2)


# --- without any picture


def test_a_lens_without_pictures(tmp_path):
    world = NamedWorld()
    folder = tmp_path / "bank"
    folder.mkdir()
    embeddings = torch.cat([world.names[:30], world.text])
    save_file({"x": embeddings.contiguous()}, folder / "embeddings.safetensors")
    phrases = [f"name {i}" for i in range(30)] + [f"phrase {chr(97 + i)}" for i in range(world.count)]
    (folder / "phrases.json").write_text(json.dumps(phrases))
    lens = text_lens(world.classifier, load_given_bank(folder))
    assert lens.bank.phrases == tuple(phrases[30:])
    z = world.sample(8)[1]
    results = ZsNle(k=None).from_features(lens, z, world.head(z).detach())
    assert "30 of 40 names" in results[0].notes[0]
    found = [p for w in results for p in w.phrases]
    assert all(p.presence == 0 and not p.supported for p in found)
    assert any(p.score > 0 for p in found)
    assert all(p.p_value is not None for p in found)
    with pytest.raises(InputError, match="there are 0"):
        text_lens(world.classifier, load_given_bank(folder).subset(range(30, 42)))


def test_descriptors_stand_for_names_that_cannot_be_read():
    world = NamedWorld()
    text = normalize(world.names[:6].repeat_interleave(3, 0) + 0.05 * randn(18, world.m, seed=5), dim=1)
    lens = world.lens(world.classifier, torch.cat([text, world.text]))
    groups = tuple(f"name {i // 3}" for i in range(18)) + ("g",) * world.count
    lens.bank = dataclasses.replace(lens.bank, groups=groups)
    found, source = class_name_embeddings(lens)
    assert source == "descriptors"
    assert torch.isfinite(found).all(1).tolist() == [i < 6 for i in range(40)]
    assert torch.allclose(found[0], normalize(text[:3].mean(0), dim=0), atol=1e-6)
    z = world.sample(2)[1]
    (words, _) = ZsNle(control=False).from_features(lens, z, world.head(z).detach())
    assert "6 of 40 names, each stood for by its descriptors" in words.notes[0]


def test_the_builtin_lens_reads_its_own_names(pictures):
    lens = Lens.load("tiny-imagenet")
    why = lens.explain(pictures[0], methods=["zs_nle"])
    assert "of 100 names" in why.results["zs_nle"].notes[0]
    assert why.results["zs_nle"].protocol.startswith("zs_nle/")


@pytest.mark.shared
def test_a_real_transformer_with_given_text_embeddings(shared_data):
    """DeiT on ImageNet with CLIP's text vectors of the names that LVIS and Objects365 share with it: no picture at all."""
    pytest.importorskip("timm")
    from safetensors import safe_open

    with safe_open(shared_data / "imagenet-classifiers" / "deit_tiny_patch16_224.fp16.safetensors", "pt") as file:
        rows = file.get_tensor("head.weight").float()
    import timm.data

    info = timm.data.ImageNetInfo("imagenet-1k")
    titles = [info.index_to_description(i) for i in range(1000)]
    given = load_given_bank(shared_data / "clip-text-vit-b32")
    at = given.find(titles)
    assert len(at) > 100
    index = torch.tensor(sorted(at))
    found = RidgeNameMap.fit(given.embeddings[[at[int(i)] for i in index]], rows[index], index)
    # Names do tell something about the rows of a trained head; shuffled names tell nothing.
    shuffled = RidgeNameMap.fit(given.embeddings[[at[int(i)] for i in index]], rows[index.flip(0).roll(7)], index)
    assert found.r2 > 0.05 > shuffled.r2
