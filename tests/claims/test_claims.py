import dataclasses
import json

import numpy as np
import pytest
from planted_stand_ins import SIZE, StandIns
from typer.testing import CliRunner

from whylens.claims import CLAIMS, ClaimPlan, maps, run_claims
from whylens.claims.figure import draw_clipping
from whylens.claims.finding import HOLDS, NOT, PARTLY, UNTESTED, VERDICTS, Effect, Finding, difference, level, verdict
from whylens.claims.page import claims_page
from whylens.claims.planted_words import AREA_UNIT, VARIANTS
from whylens.claims.world import network_label, split_network
from whylens.errors import InputError, StoreError, WhylensError
from whylens.maps.fei import QUANTILES
from whylens.method_specs import parse_methods
from whylens.planted import draw
from whylens.planted.benchmark import Plan, run_benchmark

SCENES, FIT = 24, 300
PLAN = ClaimPlan(rules=("shape",), architectures=("cnn",), scenes=SCENES, fit_scenes=FIT, size=SIZE)
WORDS = ["decision-critical-features", "dictionary-helps", "influence-beats-both", "influence-is-a-proxy"]


@pytest.fixture(scope="module")
def organisms():
    made = StandIns(scenes=SCENES, fit_scenes=FIT, rules=("shape",))
    # What the second aligner is fitted on.
    made.encoder.tell(draw("shape", FIT, 7920, "train").scenes)
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(organisms, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("claims") / "out"
    return run_claims(PLAN, out, claims=WORDS, organisms=organisms, cache=cache), out


def effect(low, *, decides=True):
    high = None if low is None else low + 1
    return Effect("a", "n", None if low is None else low + 0.5, low, high, 9, decides=decides)


@pytest.mark.parametrize(
    ("lows", "above", "expected"),
    [
        ([0.1, 0.2], 0, HOLDS),
        ([0.1, -0.2], 0, PARTLY),
        ([-0.1, 0.0], 0, NOT),
        ([0.3, 0.4], 0.5, NOT),
        ([0.6, None], 0.5, HOLDS),
        ([None], 0, UNTESTED),
        ([], 0, UNTESTED),
    ],
)
def test_verdict_follows_the_deciding_intervals(lows, above, expected):
    shown_only = [effect(-5.0, decides=False), effect(5.0, decides=False)]
    assert verdict([*map(effect, lows), *shown_only], above=above) == expected


def test_differences_are_paired():
    generator = np.random.default_rng(0)
    base = generator.normal(size=200)
    first, second = base + 1, base.copy()
    first[:20] = np.nan
    found = difference("x", "n", first, second)
    assert found.mean == pytest.approx(1)
    assert found.low == pytest.approx(1)
    assert found.pictures == 180
    assert found.first == pytest.approx(np.nanmean(first))
    assert found.second == pytest.approx(base[20:].mean())
    noisy = level("x", "n", base)
    error = base.std() / np.sqrt(200)
    assert noisy.high - noisy.low == pytest.approx(2 * 1.96 * error, rel=0.2)
    with pytest.raises(InputError, match="one a picture"):
        difference("x", "n", base, base[:-1])


def test_every_claim_has_a_meaning_for_every_verdict():
    assert len(CLAIMS) >= 6
    for name, claim in CLAIMS.items():
        assert claim.name == name
        assert set(claim.meanings) == set(VERDICTS)
        assert claim.test
        assert claim.source


def test_hits_are_those_of_the_benchmark(finished, organisms, cache, tmp_path):
    run, _ = finished
    plan = Plan(
        methods=tuple(parse_methods("faithtrace,text_to_concept{centred=False}")),
        rules=PLAN.rules,
        architectures=PLAN.architectures,
        scenes=SCENES,
        fit_scenes=FIT,
        size=SIZE,
    )
    units = run_benchmark(plan, tmp_path / "bench", organisms=organisms, cache=cache).results["units"]
    means = {u["method"]: u["scores"]["all"]["main"]["hit@1"]["mean"] for u in units if not u["floor"]}
    beats = next(f for f in run.findings if f.claim == "influence-beats-both")
    (pair,) = [e for e in beats.effects if e.comparison == "faithtrace − text_to_concept, raw" and not e.measure]
    assert pair.first == pytest.approx(means["faithtrace"])
    assert pair.second == pytest.approx(means["text_to_concept{centred=False}"])
    assert pair.mean == pytest.approx(pair.first - pair.second)


def test_files_hold_every_finding(finished):
    run, out = finished
    assert [f.claim for f in run.findings] == WORDS
    assert run.computed == len(WORDS)
    results = json.loads((out / "claims.json").read_text(encoding="utf-8"))
    assert [Finding.from_dict(values) for values in results["findings"]] == list(run.findings)
    page = (out / "claims.md").read_text(encoding="utf-8")
    for finding in run.findings:
        assert finding.verdict in page
        assert finding.meaning in page
        assert {e.network for e in finding.effects} == {"shape-cnn"}


def test_an_interrupted_run_goes_on(finished, organisms, cache, monkeypatch):
    _, out = finished
    (out / "rows" / f"{WORDS[1]}.json").write_text("{half", encoding="utf-8")
    again = run_claims(PLAN, out, claims=WORDS, organisms=organisms, cache=cache)
    assert again.computed == 1
    assert [f.claim for f in again.findings] == WORDS
    (kept,) = (out / "work").glob("words--*.npz")
    kept.write_bytes(b"damaged")
    (out / "rows" / f"{WORDS[0]}.json").unlink()
    assert run_claims(PLAN, out, claims=WORDS[:1], organisms=organisms, cache=cache).computed == 1
    with np.load(kept) as stored:
        assert {key.split("|")[0] for key in stored.files} == set(VARIANTS)


def test_a_run_that_is_stopped_in_the_middle_keeps_what_it_has(organisms, cache, tmp_path):
    def stop(done, total):
        if done == 1:
            raise KeyboardInterrupt

    out, names = tmp_path / "out", ["influence-is-a-proxy", "nested-masks", "contributions-are-needed"]
    with pytest.raises(KeyboardInterrupt):
        run_claims(PLAN, out, claims=names, organisms=organisms, cache=cache, progress=stop)
    assert not (out / "claims.md").exists()
    first = out / "rows" / "influence-is-a-proxy.json"
    written = first.read_bytes()
    again = run_claims(PLAN, out, claims=names, organisms=organisms, cache=cache)
    assert again.computed == 2
    assert first.read_bytes() == written
    assert [f.claim for f in again.findings] == [name for name in CLAIMS if name in names]
    assert (out / "claims.md").is_file()


def test_both_measures_decide_about_words(finished):
    run, _ = finished
    for finding in run.findings[:3]:
        deciding = {e.measure for e in finding.effects if e.decides}
        assert deciding == {"", AREA_UNIT}
        assert "lanted truth" in CLAIMS[finding.claim].test or "two measures" in CLAIMS[finding.claim].test
        assert any("--images" in note for note in finding.notes)


def test_without_a_network_or_its_pictures_nothing_is_measured(organisms, cache, tmp_path, picture_folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    names = ["influence-is-a-proxy", "nested-masks"]
    for n, (changes, message) in enumerate(
        [
            ({"images": empty}, "empty"),
            ({"networks": (f"builtin:tiny-imagenet={empty}",)}, "empty"),
            ({"images": picture_folder, "networks": ("builtin:tiny-imagenets",)}, "tiny-imagenet"),
            ({"images": picture_folder, "networks": (f"file:{tmp_path}/w.pt@timm:resnet18",)}, "w.pt"),
        ]
    ):
        out = tmp_path / f"out{n}"
        plan = dataclasses.replace(PLAN, limit=8, **changes)
        with pytest.raises(WhylensError, match=message):
            run_claims(plan, out, claims=names, organisms=organisms, cache=cache)
        assert not (out / "rows").exists()
    plan = dataclasses.replace(PLAN, images=picture_folder, lens="tiny-imagenet-bco")
    with pytest.raises(WhylensError, match="tiny-imagenet-bcos"):
        run_claims(plan, tmp_path / "lens", claims=["contributions-are-needed"], organisms=organisms, cache=cache)


def test_claims_about_pictures_need_pictures(organisms, cache, tmp_path):
    plan = dataclasses.replace(PLAN, limit=8)
    run = run_claims(plan, tmp_path / "out", claims=["nested-masks"], organisms=organisms, cache=cache)
    (finding,) = run.findings
    assert finding.verdict == UNTESTED
    assert "--images" in finding.notes[0]
    assert finding.effects == ()


@pytest.fixture(scope="module")
def picture_folder(tmp_path_factory):
    from skimage.data import chelsea, coffee
    from skimage.io import imsave

    folder = tmp_path_factory.mktemp("pictures")
    for n, picture in enumerate((chelsea(), coffee())):
        for part in range(4):
            side = min(picture.shape[:2]) // 2
            top, left = (part // 2) * side, (part % 2) * side
            imsave(folder / f"{n}-{part}.png", picture[top : top + side, left : left + side])
    return folder


@pytest.mark.slow
def test_claims_about_maps(organisms, cache, tmp_path, monkeypatch, picture_folder):
    monkeypatch.setattr(maps, "MODES", ("IBM", "NONE"))
    monkeypatch.setattr(maps, "ENSEMBLES", {1: (0.5,), 5: QUANTILES})
    plan = dataclasses.replace(PLAN, networks=(f"builtin:tiny-imagenet={picture_folder}",), limit=8, passes=9)
    names = ["clipping-keeps-the-pathway", "nested-masks"]
    run = run_claims(plan, tmp_path / "out", claims=names, organisms=organisms, cache=cache)
    for finding in run.findings:
        assert finding.verdict in VERDICTS[:3]
        assert finding.pictures == "8 (builtin:tiny-imagenet)"
        assert finding.protocol.startswith("fei/fast/")
        assert all(e.low <= e.mean <= e.high for e in finding.effects)
    levels = {e.comparison: e.mean for e in run.findings[0].effects}
    assert levels["insertion, NONE"] != levels["insertion, IBM"]
    # Five masks are what the clipping claim has as its default: no picture is measured twice.
    assert len(list((tmp_path / "out" / "work").glob("map--*.json"))) == 8 * 3
    both = {e.comparison: e.mean for e in run.findings[1].effects}
    assert both["insertion less deletion, 5 masks"] == pytest.approx(levels["insertion, IBM"] - levels["deletion, IBM"])
    page = (tmp_path / "out" / "claims.md").read_text(encoding="utf-8")
    assert "images/claims-clipping.svg" in page
    assert (tmp_path / "out" / "images" / "claims-clipping.svg").is_file()
    assert str(picture_folder) not in page + (tmp_path / "out" / "claims.json").read_text(encoding="utf-8")


def test_figure_shows_every_mode_on_every_network(tmp_path):
    pytest.importorskip("matplotlib")
    modes, networks = ("NONE", "FGVIS", "IBM", "IVM", "AVM", "VM"), ("one", "two")
    effects = tuple(
        Effect(f"{measure}, {mode}", network, 0.5, 0.4, 0.6, 9, decides=False)
        for measure in ("insertion", "deletion", "activation deviation")
        for mode in modes
        for network in networks
    )
    finding = Finding("clipping-keeps-the-pathway", HOLDS, "", "", "", "", "", effects)
    assert draw_clipping(finding, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for word in (*modes, *networks):
        assert f">{word}<" in text
    draw_clipping(finding, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text(encoding="utf-8") == text
    assert not draw_clipping(dataclasses.replace(finding, effects=()), tmp_path / "c.svg")
    assert not (tmp_path / "c.svg").exists()


@pytest.mark.parametrize(
    ("changes", "claims", "message"),
    [
        ({"limit": 2}, None, "limit"),
        ({"concept_limit": 2}, None, "concept_limit"),
        ({"passes": 3}, None, "passes"),
        ({"networks": ()}, None, "networks"),
        ({"words_limit": 2}, None, "words_limit"),
        ({"precision": "bfloat"}, None, "bfloat16"),
        ({"networks": ("builtin:tiny-imagenet", "builtin:tiny-imagenet")}, None, "twice"),
        ({"networks": ("builtin:tiny-imagenet=nowhere",)}, None, "nowhere"),
        ({"networks": ("=.",)}, None, "equals sign"),
        ({}, ["nested-mask"], "nested-masks"),
        ({"rules": ("shap",)}, WORDS[:1], "shape"),
    ],
)
def test_bad_input(changes, claims, message, organisms, cache, tmp_path):
    with pytest.raises(InputError, match=message):
        run_claims(
            dataclasses.replace(PLAN, **changes), tmp_path / "out", claims=claims, organisms=organisms, cache=cache
        )


def test_another_run_is_not_overwritten(finished, organisms, cache, tmp_path):
    _, out = finished
    with pytest.raises(StoreError, match="other settings"):
        run_claims(dataclasses.replace(PLAN, seed=1), out, claims=WORDS, organisms=organisms, cache=cache)
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StoreError, match=r"mine\.txt"):
        run_claims(PLAN, tmp_path, claims=WORDS, organisms=organisms, cache=cache, overwrite=True)


def test_the_command_says_what_cannot_be_tested(tmp_path):
    from whylens.cli.app import app

    run = CliRunner().invoke(app, ["bench", "claims", "--out", str(tmp_path / "out"), "--claims", "nested-masks"])
    assert run.exit_code == 0, run.output
    assert UNTESTED in run.output
    assert (tmp_path / "out" / "claims.md").is_file()


def test_sources_have_short_names_on_the_page():
    plan = ClaimPlan(networks=("file:/some/where.safetensors@timm:resnet18",))
    page = claims_page([], CLAIMS, plan)
    assert "timm:resnet18" in page
    assert "where" not in page
    assert network_label("file:/some/where.safetensors@timm:resnet18") == "timm:resnet18"
    assert network_label("builtin:tiny-imagenet") == "builtin:tiny-imagenet"


def test_a_network_may_have_a_folder(tmp_path):
    assert split_network("file:w.pt@timm:x") == ("file:w.pt@timm:x", None)
    assert split_network(f"file:w.pt@timm:x={tmp_path}") == ("file:w.pt@timm:x", tmp_path)
