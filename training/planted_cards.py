"""Measure the trained planted classifiers and put weights and cards into the package.

    python training/planted_cards.py --runs FOLDER [--encoder FOLDER] [--rules shape ...] [--scenes 200]

FOLDER of the runs is what `train_organisms.py` wrote, that of the encoder what `train_scene_encoder.py` wrote. For every
network: accuracy by split, and the effect of every attribute on evaluation scenes that training never saw. Writes
src/whylens/planted/data/ and the tables in docs/planted-cards.md. The table is made from the cards in the package, so a run
over some of the rules leaves the others as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from whylens.classifiers import Classifier
from whylens.planted.effects import CAUSE_ERRORS, CAUSE_SPREAD, COLUMNS, EffectTable, measure_effects
from whylens.planted.organisms import (
    ARCHITECTURES,
    CARD,
    DESCRIPTION,
    ENCODERS,
    ORGANISMS,
    SCENE_ENCODER,
    WEIGHTS,
    load_organism,
    load_scene_encoder,
    organism_card,
    organism_names,
    scene_encoder_card,
)
from whylens.planted.rendering import render_batch
from whylens.planted.rules import RULES, draw, get_rule
from whylens.planted.scene import ATTRIBUTES, Scene

PAGE = Path(__file__).parent.parent / "docs/planted-cards.md"
# Not the seed of the training scenes, so that neither splits nor seeds are shared.
SEED = 1
ACCURACY_SCENES = 2000
# Every effect is the mean over this many nuisances beside the scene's own.
RESEEDS = 2
LIMIT = 6_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="classifiers to take over; without it the package's are measured")
    parser.add_argument("--encoder", type=Path, help="encoder to take over")
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES))
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--scenes", type=int, default=200, help="evaluation scenes of the effects")
    options = parser.parse_args()
    if options.encoder is not None:
        take_encoder(options.encoder)
    for rule in options.rules:
        if options.runs is not None:
            for architecture in options.architectures:
                take(f"{rule}-{architecture}", options.runs)
        present = [a for a in options.architectures if f"{rule}-{a}" in organism_names()]
        if present:
            measure(rule, present, options.scenes)
    write_page()
    size = sum(file.stat().st_size for file in ORGANISMS.parent.rglob("*") if file.is_file())
    print(f"{size / 1e6:.2f} MB in the package")
    assert size <= LIMIT


def take(name: str, runs: Path) -> None:
    """Copy what a finished run wrote."""
    if not (runs / name / WEIGHTS).exists():
        return
    (ORGANISMS / name).mkdir(parents=True, exist_ok=True)
    for file in (WEIGHTS, DESCRIPTION):
        shutil.copyfile(runs / name / file, ORGANISMS / name / file)


def take_encoder(run: Path) -> None:
    folder = ENCODERS / SCENE_ENCODER
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("encoder.json", "encoder.safetensors"):
        shutil.copyfile(run / "encoder" / file, folder / file)
    card = json.loads((run / "figures.json").read_text())
    card["fingerprint"] = load_scene_encoder(device="cpu").fingerprint
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")


def measure(rule: str, architectures: list[str], count: int) -> None:
    """All architectures of a rule answer the same pictures, so that each is rendered once."""
    classifiers = [load_organism(rule, architecture) for architecture in architectures]
    classes = len(get_rule(rule).classes)

    @torch.no_grad()
    def together(images: Tensor) -> Tensor:
        return torch.cat([c.logits(images) for c in classifiers], 1)

    right, spreads = accuracies(rule, classifiers)
    scenes = effect_scenes(rule, count)
    table = measure_effects(together, scenes, reseeds=RESEEDS)
    for k, (architecture, classifier) in enumerate(zip(architectures, classifiers, strict=True)):
        own = slice(k * classes, (k + 1) * classes)
        part = EffectTable(table.scenes, table.unchanged[..., own], table.changed[..., own], table.size)
        card = {
            "rule": rule,
            "architecture": architecture,
            "parameters": sum(p.numel() for p in classifier.module.parameters()),
            "fingerprint": classifier.fingerprint,
            "training": json.loads((ORGANISMS / f"{rule}-{architecture}" / DESCRIPTION).read_text())["training"],
            "accuracy": right[k],
            "effects": summary(rule, part, spreads[k]),
        }
        (ORGANISMS / f"{rule}-{architecture}" / CARD).write_text(json.dumps(card, indent=1) + "\n")
        print(rule, architecture, json.dumps(card["accuracy"]), json.dumps(card["effects"]), flush=True)


def effect_scenes(rule: str, count: int) -> tuple[Scene, ...]:
    """Evaluation scenes; of rules whose questions have one class, scenes of this class."""
    answers = get_rule(rule).answers
    drawn = draw(rule, count if answers is None else 3 * count, SEED, "evaluation")
    chosen = [s for s, label in zip(drawn.scenes, drawn.labels, strict=True) if answers in (None, label)]
    return tuple(chosen[:count])


def summary(rule: str, table: EffectTable, spreads: np.ndarray) -> dict[str, object]:
    labels = np.array([get_rule(rule).label(scene) for scene in table.scenes])
    effects = table.effects(labels)
    # Against the spread over scenes of every class, not over the few that are asked about.
    effects = dataclasses.replace(effects, spread=spreads[labels])
    weighty = np.abs(effects.effect) > np.maximum(CAUSE_ERRORS * effects.error, CAUSE_SPREAD * effects.spread[:, None])
    rows = {}
    for attribute in ATTRIBUTES:
        value, _ = effects.of(attribute)
        shown = ~np.isnan(value)
        columns = [j for j, column in enumerate(COLUMNS) if column[0] == attribute]
        cause = (weighty & effects.present)[:, columns].any(axis=1)
        rows[attribute] = {
            "mean": round(float((np.abs(value) / effects.spread)[shown].mean()), 4),
            "share": round(float(cause[shown].mean()), 4),
        }
    return {"scenes": len(table.scenes), "reseeds": RESEEDS, **rows}


@torch.no_grad()
def accuracies(rule: str, classifiers: list[Classifier]) -> tuple[list[dict[str, float]], list[np.ndarray]]:
    """Accuracy by split, and the standard deviation of every logit over the evaluation scenes."""
    spreads: list[np.ndarray] = []
    found: list[dict[str, float]] = [{} for _ in classifiers]
    for split in ("validation", "evaluation", "uniform"):
        drawn = draw(rule, ACCURACY_SCENES, SEED, split)
        labels = torch.tensor(drawn.labels)
        answers: list[list[Tensor]] = [[] for _ in classifiers]
        for start in range(0, ACCURACY_SCENES, 250):
            images = render_batch(drawn.scenes[start : start + 250]).images
            x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            for k, classifier in enumerate(classifiers):
                answers[k].append(classifier.logits(x))
        for k, parts in enumerate(answers):
            logits = torch.cat(parts)
            found[k][split] = round(float((logits.argmax(1) == labels).float().mean()), 4)
            if split == "evaluation":
                spreads.append(logits.double().std(0).numpy())
    return found, spreads


def write_page() -> None:
    cards = {name: organism_card(name) for name in organism_names()}
    lines = [
        "# Cards of the planted classifiers and the encoder for scenes",
        "",
        "Written by `training/planted_cards.py`.",
        "",
        "## Accuracy",
        "",
        f"Share of {ACCURACY_SCENES:,} fresh scenes of each split. `validation` follows the training distribution, `evaluation` has",
        "balanced classes and a broken shortcut, `uniform` has every attribute independent.",
        "",
        "| classifier | parameters | validation | evaluation | uniform |",
        "|---|---|---|---|---|",
    ]
    for name, card in cards.items():
        right = card["accuracy"]
        lines.append(
            f"| `{name}` | {card['parameters']:,} | {right['validation']:.3f} | {right['evaluation']:.3f} | {right['uniform']:.3f} |"
        )
    number = {card["effects"]["scenes"] for card in cards.values()}
    lines += [
        "",
        "## Measured effects",
        "",
        f"On {' / '.join(map(str, sorted(number)))} evaluation scenes, on the logit of the scene's own class (of class A, on scenes of class A,",
        "for `disjunction` and `suppressor`): mean absolute effect of the scene's own value in units of the logit's",
        "standard deviation over evaluation scenes of all classes, and in brackets the share of the scenes showing the attribute where it is a cause.",
        "",
        "| classifier | " + " | ".join(name.replace("_", " ") for name in ATTRIBUTES) + " |",
        "|---" * (len(ATTRIBUTES) + 1) + "|",
    ]
    for name, card in cards.items():
        cells = (f"{card['effects'][a]['mean']:.2f} ({card['effects'][a]['share']:.0%})" for a in ATTRIBUTES)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    if (ENCODERS / SCENE_ENCODER / CARD).exists():
        card = scene_encoder_card()
        kinds = ("caption words", "held-out synonyms", "held-out combinations")
        lines += [
            "",
            "## The image-text encoder",
            "",
            "Share of 2,000 unseen scenes (for combinations: those with a pair of values that no caption ever named together)",
            "whose own value scores highest among the attribute's values; one phrase a value, mean over the phrases.",
            "",
            "| | " + " | ".join(name.replace("_", " ") for name in ATTRIBUTES) + " |",
            "|---" * (len(ATTRIBUTES) + 1) + "|",
        ]
        lines += [f"| {kind} | " + " | ".join(f"{card[kind][a]:.3f}" for a in ATTRIBUTES) + " |" for kind in kinds]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
