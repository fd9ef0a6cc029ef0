"""Texter's ways into words against the measured causes of planted scenes, with and without a dictionary.

Every variant answers the main question about the same first scenes of a rule; `maco`, which optimises a picture for every
set of units, about fewer of them. Optimised pictures are kept in the cache of concept images and finished variants in
--work, so that an interrupted run goes on.

python benchmarks/texter_planted.py --work FOLDER [--cache FOLDER] [--rules ...] [--scenes 100] [--maco 40]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row, write_results

from whylens.canonical import content_hash
from whylens.errors import ModelError
from whylens.lens import Lens
from whylens.planted import organisms
from whylens.planted.benchmark import Plan
from whylens.planted.benchmark_cache import default_cache, scene_tensor
from whylens.planted.benchmark_lens import fit_scenes, named_columns, with_dictionary
from whylens.planted.benchmark_questions import MAIN, Asked
from whylens.planted.benchmark_stage import Stage
from whylens.planted.scoring_common import Array, Truth, summarise
from whylens.planted.scoring_words import WordsAnswer, score_words, whole_scores
from whylens.words import Texter, estimate_spectrum

SCORE = "hit@1"
# As many as a fit reads for its spectrum.
SPECTRUM_PICTURES = 500


@dataclass(frozen=True)
class Variant:
    mode: str
    dictionary: bool

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.mode}, dictionary" if self.dictionary else self.mode


VARIANTS = [
    Variant(mode, dictionary) for mode in ("exemplar", "decode", "maco-cached", "maco") for dictionary in (False, True)
]
ARCHITECTURES = ("cnn", "vit")


def main_question(stage: Stage, architecture: str, count: int) -> Asked:
    """The main question about the first ``count`` pictures that it applies to."""
    (asked,) = [a for a in stage.asked(architecture) if a.name == MAIN]
    return part_of(asked, slice(0, count))


def part_of(asked: Asked, kept: slice) -> Asked:
    """The question about some of its pictures."""
    truth = asked.truth
    return replace(
        asked,
        rows=asked.rows[kept],
        targets=asked.targets[kept],
        contrasts=None if asked.contrasts is None else asked.contrasts[kept],
        truth=Truth(truth.effect[kept], truth.error[kept], truth.present[kept], truth.cause[kept]),
    )


def hits(stage: Stage, architecture: str, lens: Lens, asked: Asked, variant: Variant) -> Array:
    """Whether the first phrase names the largest cause, (B,); NaN where there is no cause."""
    method = Texter(mode=variant.mode, dictionary=variant.dictionary, k=None, control=False, suppressing=False)
    try:
        scores = whole_scores(stage.ask(method, architecture, lens, asked), lens.bank.phrases)
    except ModelError:
        # Units that do not respond to their own visualisation say nothing: no phrase, which is not a hit.
        if len(asked.rows) > 1:
            single = [part_of(asked, slice(i, i + 1)) for i in range(len(asked.rows))]
            return np.concatenate([hits(stage, architecture, lens, one, variant) for one in single])
        scores = np.zeros((1, len(lens.bank.phrases)))
    best = scores.argmax(axis=1)[:, None]
    shown = np.where(np.take_along_axis(scores, best, axis=1) > 0, best, -1)
    none = np.zeros((len(scores), 0), np.int64)
    answer = WordsAnswer(shown, none, np.full(shown.shape, -1, np.int8), none.astype(np.int8), scores)
    return score_words(answer, asked.truth, named_columns(stage.banks["all"]))[SCORE]


def lens_of(stage: Stage, architecture: str, plan: Plan) -> Lens:
    """The lens with the spectrum of its own scenes and a dictionary of the preset `default`, as a fit makes them."""
    lens = stage.lens(architecture, "own")["all"]
    scenes = fit_scenes(stage.rule, "own", plan.fit_scenes, plan.seed)[:SPECTRUM_PICTURES]
    features, embeddings = stage.fit_pairs(architecture, "own")
    return with_dictionary(
        replace(lens, spectrum=estimate_spectrum(scene_tensor(scenes, plan.size))), features, embeddings
    )


def measured(options: argparse.Namespace) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Hits and processor seconds by network and variant; what --work holds is not measured again."""
    plan = Plan(rules=tuple(options.rules), scenes=500, seed=0)
    encoder = organisms.load_scene_encoder()
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for rule in options.rules:
        classifiers = {a: organisms.load_organism(rule, a) for a in ARCHITECTURES}
        stage: Stage | None = None
        for architecture, classifier in classifiers.items():
            lens: Lens | None = None
            for variant in VARIANTS:
                if variant.name not in options.only:
                    continue
                count = options.maco if variant.mode == "maco" else options.scenes
                mark = content_hash(classifier.fingerprint, encoder.fingerprint, variant.name, str(count))[:12]
                file = options.work / f"{rule}-{architecture}-{mark}.json"
                if not file.exists():
                    if options.ready:
                        continue
                    stage = stage or Stage(plan, rule, classifiers, encoder, options.cache, lambda: None)
                    lens = lens or lens_of(stage, architecture, plan)
                    asked = main_question(stage, architecture, count)
                    started = time.process_time()
                    values = hits(stage, architecture, lens, asked, variant)
                    row = {"hits": [None if np.isnan(v) else v for v in values.tolist()]}
                    row["seconds"] = time.process_time() - started
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(row), encoding="utf-8")
                kept = json.loads(file.read_text(encoding="utf-8"))
                found[f"{rule}-{architecture}", variant.name] = kept
                values = np.array([np.nan if v is None else v for v in kept["hits"]])
                print(
                    f"{rule}-{architecture}: {variant.name} {np.nanmean(values):.3f}, {kept['seconds']:.0f} s",
                    flush=True,
                )
    return found


def tables(found: Mapping[tuple[str, str], Mapping[str, Any]], few: int) -> dict[str, list[Row]]:
    """One table on all scenes, and one on those that every variant answered."""
    networks = list(dict.fromkeys(network for network, _ in found))
    sections = {}
    for title, limit in (
        (f"First phrase right, the first {few} scenes", few),
        ("First phrase right, all scenes", None),
    ):
        rows: list[Row] = []
        for variant in VARIANTS:
            if limit is None and variant.mode == "maco":
                continue
            row: Row = {"texter": variant.name}
            own = [network for network in networks if (network, variant.name) in found]
            for network in own:
                kept = found[network, variant.name]["hits"][:limit]
                values = np.array([np.nan if v is None else v for v in kept])
                said = summarise(values, seed=0)
                if said["mean"] is not None:
                    row[network] = f"{said['mean']:.2f} ({said['low']:.2f}–{said['high']:.2f}) n={said['pictures']}"
            for architecture in ARCHITECTURES:
                means = [
                    np.nanmean([np.nan if v is None else v for v in found[n, variant.name]["hits"][:limit]])
                    for n in own
                    if n.endswith(architecture)
                ]
                if len(means) == sum(n.endswith(architecture) for n in networks):
                    row[f"mean {architecture}"] = float(np.mean(means))
            rows.append(row)
        sections[title] = rows
    return sections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rules", nargs="+", default=["shape", "texture", "shortcut-background", "disjunction"], help="planted rules"
    )
    parser.add_argument(
        "--only", nargs="+", default=[v.name for v in VARIANTS], help="variants, as the table calls them"
    )
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--maco", type=int, default=40, help="scenes for the mode maco")
    parser.add_argument("--ready", action="store_true", help="write the tables of what --work holds, measure nothing")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="of effects and features; as `whylens bench planted`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.cache = options.cache or default_cache()
    torch.set_num_threads(1)
    write_results("texter_planted", tables(measured(options), options.maco), options.out)


if __name__ == "__main__":
    main()
