from itertools import product

import numpy as np
import pytest

from whylens.planted import ATTRIBUTES, COLUMNS, RULES, ShapleyValues, draw, get_rule, measure_effects
from whylens.planted.benchmark_questions import overdetermined, questions
from whylens.planted.rules import TRIGGERS


def no_shapley(scenes, targets):
    raise AssertionError("no Shapley values are needed here")


def made_up_table(rule, count=40):
    """Logits that follow the pictures, with as many classes as the rule."""
    classes = len(get_rule(rule).classes)

    def logits(x):
        means = x.mean((2, 3)).repeat(1, 1 + classes // 3)[:, :classes]
        return (means * 41.7).sin() * 5

    return measure_effects(logits, draw(rule, count, 0, "evaluation").scenes, reseeds=1, size=16)


def test_every_class_is_asked_about_as_predicted():
    table = made_up_table("texture")
    main, contrast = questions(get_rule("texture"), table, no_shapley)
    assert main.rows.tolist() == list(range(40))
    assert np.array_equal(main.targets, table.predictions)
    assert main.contrasts is None
    assert np.array_equal(main.truth.effect, table.effects().effect, equal_nan=True)
    best_two = np.sort(table.unchanged[:, 0], axis=1)[:, -2:]
    logits = table.unchanged[:, 0]
    rows = np.arange(40)
    assert np.array_equal(logits[rows, contrast.contrasts], best_two[:, 0])
    assert np.array_equal(logits[rows, contrast.targets], best_two[:, 1])


def test_twins_are_asked_against_each_other():
    table = made_up_table("spurious-pair")
    main, plain = questions(get_rule("spurious-pair"), table, no_shapley)
    assert set(main.rows) == set(np.flatnonzero(table.predictions != 2))
    assert set(main.targets) | set(main.contrasts) <= {0, 1}
    assert (main.targets + main.contrasts == 1).all()
    assert np.array_equal(main.targets, table.predictions[main.rows])
    expected = table.effects(main.targets.repeat(1)[0], 1 - main.targets[0]).effect[main.rows[0]]
    assert np.allclose(main.truth.effect[0], expected, equal_nan=True)
    assert len(plain.rows) == 40


def test_a_rule_with_reasons_is_asked_about_its_class():
    rule = get_rule("disjunction")
    table = made_up_table("disjunction", 60)
    asked_about = []

    def shapley(scenes, targets):
        asked_about.append((tuple(scenes), tuple(targets)))
        names = ("colour", "texture")
        return ShapleyValues(names, np.ones((len(scenes), 2)), np.zeros((len(scenes), 2)), np.full(len(scenes), 2.0))

    found = {question.name: question for question in questions(rule, table, shapley)}
    several = [n for n, scene in enumerate(table.scenes) if len(rule.causes(scene)) > 1]
    assert several
    assert set(found["main"].rows) == set(np.flatnonzero(table.predictions == 0)) - set(several)
    assert set(found["refused"].rows) == set(np.flatnonzero(table.predictions == 1))
    assert set(found["main"].targets) == set(found["refused"].targets) == {0}
    assert found["refused"].contrasts is None
    assert set(found["contrast"].rows) == set(np.flatnonzero(table.predictions == 1))
    assert set(found["contrast"].contrasts) == {0}
    chosen = [n for n in several if table.predictions[n] == 0]
    if chosen:
        assert found["overdetermined"].rows.tolist() == chosen
        assert asked_about == [(tuple(table.scenes[n] for n in chosen), (0,) * len(chosen))]
        assert (
            found["overdetermined"].truth.largest()[:, [j for j, c in enumerate(COLUMNS) if c[0] == "size"]].sum() == 0
        )


@pytest.mark.parametrize("name", RULES)
def test_overdetermined_against_every_joint_change(name):
    """Slow definition: some set of causes changes the label together, though no single cause does."""
    rule = get_rule(name)
    found = 0
    for scene in draw(rule, 30, 5, "evaluation").scenes:
        causes = rule.causes(scene)
        label = rule.label(scene)
        changes = [
            {a: v for a, v in zip(causes, values, strict=True) if v != scene.value(a)}
            for values in product(*(ATTRIBUTES[a] for a in causes))
        ]
        flips = [c for c in changes if c and rule.label(scene.with_values(c)) != label]
        expected = bool(flips) and all(len(c) > 1 for c in flips)
        assert overdetermined(rule, scene) == expected
        found += expected
    if name == "disjunction":
        assert found
        assert set(TRIGGERS) <= set(ATTRIBUTES)
