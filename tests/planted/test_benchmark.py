import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from planted_stand_ins import SIZE, StandIns

from whylens.errors import InputError, StoreError
from whylens.method_specs import parse_methods
from whylens.planted import benchmark_stage
from whylens.planted.benchmark import Plan, run_benchmark
from whylens.planted.benchmark_cache import effect_tables
from whylens.planted.effects import measure_effects
from whylens.planted.rules import draw

SCENES, FIT = 24, 300
PLAN = Plan(
    methods=tuple(parse_methods("text_to_concept")),
    rules=("disjunction",),
    architectures=("cnn",),
    scenes=SCENES,
    fit_scenes=FIT,
    size=SIZE,
)


@pytest.fixture(scope="module")
def organisms():
    return StandIns(scenes=SCENES, fit_scenes=FIT, rules=("disjunction",))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(organisms, cache, tmp_path):
    def call(plan=PLAN, out=tmp_path / "out", **options):
        return run_benchmark(plan, out, organisms=organisms, cache=cache, **options)

    return call


def units(result, **where):
    return [u for u in result.results["units"] if all(u[k] == v for k, v in where.items())]


def methods(text):
    return dataclasses.replace(PLAN, methods=tuple(parse_methods(text)))


def test_floors_oracle_and_files(run, tmp_path):
    steps = []
    result = run(progress=lambda done, total: steps.append((done, total)))
    assert result.failures == []
    (oracle,) = units(result, method="oracle")
    for bank in ("all", "held-out"):
        for question, scores in oracle["scores"][bank].items():
            hits = scores["hit@1"]
            assert hits["mean"] in (1.0, None), question
            assert scores["false alarms"]["mean"] in (0.0, None), question
    main = oracle["scores"]["all"]["main"]
    assert main["spearman present"]["mean"] == pytest.approx(1)
    assert main["spearman absent"]["mean"] == pytest.approx(1)
    assert main["hit@1"]["pictures"] > 5
    # The class is called "A", which no encoder reads: the bank has no prior.
    assert units(result, method="bank prior")[0]["scores"] == {}
    (random,) = units(result, method="random")
    assert random["scores"]["all"]["main"]["hit@1"]["mean"] < 0.5
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["units"] == json.loads(json.dumps(result.results["units"]))
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| text_to_concept |" in table
    assert "*oracle*" in table
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
    assert steps[-1][0] == steps[-1][1]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_methods_see_the_pictures_and_questions_of_the_truth(run, monkeypatch):
    """A method that is told the classifier alone must find what the effects table was measured on."""
    seen = []

    class Witness:
        kind = "words"

        def __call__(self, lens, images, targets=None, *, contrasts=None, seed=0):
            seen.append((images, targets, contrasts, lens.classifier.logits(images).argmax(1)))
            return [empty_words() for _ in images]

    module = type(sys)("witness_module")
    module.Witness = Witness
    monkeypatch.setitem(sys.modules, "witness_module", module)
    result = run(methods("witness_module:Witness"))
    assert result.failures == []
    scores = units(result, method="witness_module:Witness")[0]["scores"]["all"]
    assert scores["main"]["hit@1"]["mean"] == 0
    for images, targets, contrasts, predicted in seen:
        assert images.shape[1:] == (3, SIZE, SIZE)
        if contrasts is None:
            assert set(targets.tolist()) == {0}
        else:
            assert torch.equal(targets, predicted)
            assert set(contrasts.tolist()) == {0}


def empty_words():
    from whylens.types import Words

    return Words("own", "own@1", {}, 0, None, ())


def test_one_rendering_serves_several_classifiers(organisms, tmp_path):
    scenes = draw("disjunction", 3, 1, "evaluation").scenes
    both = {name: organisms.load_organism("disjunction", name) for name in ("cnn", "vit")}
    tables = effect_tables(both, scenes, tmp_path, size=SIZE)
    for name, classifier in both.items():
        alone = measure_effects(classifier.logits, scenes, size=SIZE)
        assert np.allclose(tables[name].changed, alone.changed, atol=1e-5, equal_nan=True)
        assert tables[name].scenes == scenes
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    again = effect_tables(both, scenes, tmp_path, size=SIZE)
    assert np.array_equal(again["cnn"].changed, tables["cnn"].changed, equal_nan=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == before
    # A damaged file is measured again.
    next(iter(before)).write_bytes(b"damaged")
    repaired = effect_tables(both, scenes, tmp_path, size=SIZE)
    assert np.allclose(repaired["cnn"].changed, tables["cnn"].changed, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("planted_methods:Raises", "RuntimeError: this method is broken"),
        ("planted_methods:TooFew", "list of"),
        ("planted_methods:NotANumber", "is nan"),
        ("planted_methods:WrongSize", f"{SIZE} x {SIZE} numbers"),
        ("planted_methods:NaNMap", "NaN"),
    ],
)
def test_a_broken_method_is_reported_and_the_run_goes_on(run, tmp_path, method, reason):
    result = run(methods(f"{method},text_to_concept,planted_methods:RedMap"))
    (failure,) = result.failures
    assert failure["method"] == method
    assert reason in failure["reason"]
    assert "\n" not in failure["reason"]
    assert len(units(result, method="text_to_concept")) == 1
    (red,) = units(result, method="planted_methods:RedMap")
    assert 0 <= red["scores"][""]["main"]["mass"]["mean"] <= 1
    (floor,) = units(result, method="oracle", kind="map")
    for score in ("mass", "rank", "pointing"):
        assert floor["scores"][""]["main"][score]["mean"] == pytest.approx(1, abs=1e-4)
    # Not 1, because a carrier can have causes of both signs.
    assert floor["scores"][""]["main"]["spearman carriers"]["mean"] > 0.5
    table = (tmp_path / "out" / "results.md").read_text()
    assert "Not scored" in table
    assert reason in table


def test_a_method_without_k_is_scored_by_what_it_shows(run):
    (unit,) = units(run(methods("planted_methods:FirstPhrases")), method="planted_methods:FirstPhrases")
    main = unit["scores"]["all"]["main"]
    assert main["hit@1"]["mean"] is not None
    assert main["spearman present"]["mean"] is None


def test_an_interrupted_run_goes_on(run, monkeypatch):
    original = benchmark_stage.Stage.score
    done = []

    def interrupted(self, unit):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(unit.name)
        return original(self, unit)

    monkeypatch.setattr(benchmark_stage.Stage, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(benchmark_stage.Stage, "score", original)
    second = run()
    assert second.reused == 3
    assert second.computed == len(second.results["units"]) - 3
    third = run()
    assert third.computed == 0
    assert third.results == second.results


def test_a_failed_method_is_tried_again(run, monkeypatch):
    plan = methods("planted_methods:FirstPhrases")
    import planted_methods

    original = planted_methods.FirstPhrases.__call__
    monkeypatch.setattr(planted_methods.FirstPhrases, "__call__", lambda self, *a, **k: 1 / 0)
    assert "ZeroDivisionError" in run(plan).failures[0]["reason"]
    monkeypatch.setattr(planted_methods.FirstPhrases, "__call__", original)
    second = run(plan)
    assert second.failures == []
    assert second.computed == 1


def test_another_network_is_scored_anew(run, organisms, monkeypatch):
    first = run()
    from planted_stand_ins import colour_classifier

    from whylens.planted import get_rule

    monkeypatch.setattr(
        organisms, "load_organism", lambda rule, architecture: colour_classifier(get_rule(rule).classes, 5)
    )
    second = run()
    assert second.reused == 0
    assert second.results["units"] != first.results["units"]


def test_foreign_folders_are_refused(run, tmp_path, monkeypatch):
    run()
    with pytest.raises(StoreError, match="another configuration \\(methods differ\\)"):
        run(methods("text_to_concept{centred=False}"))
    changed = dataclasses.replace(PLAN, seed=1)
    with pytest.raises(StoreError, match="seed differ"):
        run(changed)
    with monkeypatch.context() as patch:
        patch.setattr("whylens.__version__", "0.0.1")
        with pytest.raises(StoreError, match="whylens differ"):
            run()
    result = run(methods("text_to_concept{centred=False}"), overwrite=True)
    assert units(result, method="text_to_concept{centred=False}")
    assert len(list((tmp_path / "out" / "units").iterdir())) == len(result.results["units"])
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(StoreError, match=r"holds other files, such as 'letter.txt'"):
        run(out=other, overwrite=True)
    assert (other / "letter.txt").read_text() == "dear"
    with pytest.raises(StoreError, match="is a file"):
        run(out=other / "letter.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": ("shapes",)}, "Did you mean 'shape'"),
        ({"architectures": ("cn",)}, "Did you mean 'cnn'"),
        ({"rules": ("texture",)}, "no classifier for this choice"),
        ({"fits": ("own", "unifrom")}, "Did you mean 'uniform'"),
        ({"fits": ()}, "one or more ways"),
        ({"scenes": 3}, "at least 20"),
        ({"fit_scenes": 3}, "at least 200"),
    ],
)
def test_bad_plans(run, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(dataclasses.replace(PLAN, **changes))
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_figure_is_left_out(run, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run()
    assert not (tmp_path / "out" / "results.png").exists()
    assert "whylens[plot]" in (tmp_path / "out" / "results.md").read_text()
