"""One rule of the benchmark: its pictures, effects, questions and lenses, and every method's answers to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from whylens.errors import InputError
from whylens.method_specs import MethodSpec
from whylens.metrics.curves import RISE_CURVES
from whylens.metrics.maps import score_maps as curve_areas_of
from whylens.planted.benchmark_cache import (
    cached_shapley,
    effect_tables,
    paired_features,
    scene_tensor,
)
from whylens.planted.benchmark_lens import (
    fit_scene_lens,
    fit_scenes,
    named_columns,
    readable_phrases,
    scene_dictionary,
    with_phrases,
)
from whylens.planted.benchmark_questions import MAIN, Asked, questions
from whylens.planted.floors import MAP_FLOORS, WORDS_FLOORS, Known
from whylens.planted.rendering import render_batch
from whylens.planted.rules import draw, get_rule
from whylens.planted.scoring_common import Array, summarise
from whylens.planted.scoring_maps import read_maps, score_maps
from whylens.planted.scoring_traces import TOP, TRACE_SCORES, purities, read_traces, score_trace, variations
from whylens.planted.scoring_words import WordsAnswer, read_words, score_words, whole_scores
from whylens.randomness import picture_hash
from whylens.traces import Traced
from whylens.types import Trace
from whylens.words.base import of_pictures
from whylens.words.reader import embed_pictures

if TYPE_CHECKING:
    from whylens.classifiers import Classifier
    from whylens.dictionaries import Dictionary
    from whylens.encoders import Encoder
    from whylens.lens import Lens
    from whylens.planted.benchmark import Plan, Unit

BATCH = 64
#: Insertion and deletion cost 57 passes a picture, so that only so many pictures get them.
CURVE_PICTURES = 100
#: A trace is tested with another one for each other value of the largest cause.
TRACE_PICTURES = 100
#: Banks that a words method is asked with: everything the encoder reads, and the held-out synonyms alone.
BANKS = ("all", "held-out")

Scores = dict[str, dict[str, dict[str, Any]]]


class Stage:
    """Everything about one rule that its units share; lenses and features are made when the first unit wants them.

    Args:
        plan: of the run.
        rule: its name.
        classifiers: by architecture.
        encoder: of scenes.
        cache: folder of what was measured before.
        step: called after every piece of effects.
    """

    def __init__(
        self,
        plan: Plan,
        rule: str,
        classifiers: Mapping[str, Classifier],
        encoder: Encoder,
        cache: Path,
        step: Callable[[], None],
    ) -> None:
        self.plan, self.rule, self.classifiers, self.encoder, self.cache = plan, rule, classifiers, encoder, cache
        scenes = draw(rule, plan.scenes, plan.seed, "evaluation").scenes
        rendered = render_batch(scenes, plan.size)
        planes = np.ascontiguousarray(rendered.images.transpose(0, 3, 1, 2))
        self.pictures: Tensor = torch.from_numpy(planes).float() / 255
        self.tables = effect_tables(classifiers, scenes, cache, size=plan.size, step=step)
        self.banks = readable_phrases(encoder)
        hashes = tuple(picture_hash(picture) for picture in self.pictures)
        self.known = Known(hashes, plan.seed, rendered.masks, embed_pictures(encoder, self.pictures), encoder)
        # Held with the stage and not with the class, so that they go when the rule is done.
        self.asked = lru_cache(maxsize=None)(self._asked)
        self.lens = lru_cache(maxsize=4)(self._lens)
        self.seen = lru_cache(maxsize=2)(self._seen)
        self.dictionary = lru_cache(maxsize=3)(self._dictionary)

    def score(self, unit: Unit) -> dict[str, Any]:
        """Scores of a unit, by bank and question, and what they apply to.

        Raises:
            InputError: for a kind that cannot be scored yet.
            ModelError: where the method breaks its contract. Whatever else the method raises passes through.
        """
        if unit.kind == "words":
            return {"scores": self._words(unit)}
        if unit.kind == "map":
            return {"scores": self._maps(unit)}
        if unit.kind == "trace" and unit.spec is not None:
            return {"scores": self._traces(unit.spec, unit.architecture, unit.fit == "dictionary")}
        raise InputError(f"Methods of the kind {unit.kind!r} are not scored on planted scenes yet.")

    def _asked(self, architecture: str) -> list[Asked]:
        classifier = self.classifiers[architecture]
        measure = partial(cached_shapley, classifier, folder=self.cache, size=self.plan.size)
        return questions(get_rule(self.rule), self.tables[architecture], measure)

    def _lens(self, architecture: str, fit: str) -> dict[str, Lens]:
        """The lens with every bank, by the bank's name."""
        lens = fit_scene_lens(
            self.classifiers[architecture],
            self.encoder,
            self.rule,
            fit,
            self.banks["all"],
            count=self.plan.fit_scenes,
            seed=self.plan.seed,
            size=self.plan.size,
            cache=self.cache,
        )
        return {"all": lens, **{n: with_phrases(lens, self.encoder, self.banks[n]) for n in BANKS[1:]}}

    def fit_pairs(self, architecture: str, fit: str) -> tuple[Tensor, Tensor]:
        """Pooled features (N, d) and embeddings (N, m) that the lens was fitted on, the held-out tenth included."""
        scenes = fit_scenes(self.rule, fit, self.plan.fit_scenes, self.plan.seed)
        return paired_features(self.classifiers[architecture], self.encoder, scenes, self.cache, size=self.plan.size)

    def _seen(self, architecture: str) -> tuple[Tensor, Tensor]:
        """Features and logits of every picture."""
        with torch.no_grad():
            parts = [self.classifiers[architecture].features_and_logits(p) for p in self.pictures.split(BATCH)]
        return torch.cat([z for z, _ in parts]), torch.cat([logits for _, logits in parts])

    def _words(self, unit: Unit) -> Scores:
        scores: Scores = {}
        lenses = self.lens(unit.architecture, unit.fit)
        for bank in BANKS:
            phrases, lens = self.banks[bank], lenses[bank]
            names = named_columns(phrases)
            for asked in self.asked(unit.architecture):
                if unit.spec is None:
                    found = WORDS_FLOORS[unit.method](self.known, asked, lens, names)
                    if found is None:
                        continue
                    answer = found
                else:
                    answer = self._answer(unit.spec, unit.architecture, lens, asked)
                values = score_words(answer, asked.truth, names)
                scores.setdefault(bank, {})[asked.name] = self._summaries(values)
        return scores

    def _answer(self, spec: MethodSpec, architecture: str, lens: Lens, asked: Asked) -> WordsAnswer:
        results = self.ask(spec.make(), architecture, lens, asked)
        answer = read_words(results, lens.bank.phrases, len(asked.rows))
        if asked.name != MAIN or not spec.accepts("k"):
            return answer
        # The order of the whole bank needs neither the control nor the choice of what is shown.
        changes = {"k": None} | ({"control": False} if spec.accepts("control") else {})
        whole = self.ask(spec.make(**changes), architecture, lens, asked)
        read_words(whole, lens.bank.phrases, len(asked.rows))
        scores = whole_scores(whole, lens.bank.phrases)
        return WordsAnswer(
            answer.shown, answer.suppressing, answer.shown_supported, answer.suppressing_supported, scores
        )

    def ask(self, method: Any, architecture: str, lens: Lens, asked: Asked) -> Any:
        """A words method's results in batches; from features that are at hand, where it takes them."""
        results: list[Any] = []
        from_features = getattr(method, "from_features", None)
        if getattr(method, "layer", None) is not None:
            from_features = None
        for part in np.array_split(np.arange(len(asked.rows)), max(1, -(-len(asked.rows) // BATCH))):
            rows = torch.from_numpy(asked.rows[part])
            targets = torch.from_numpy(asked.targets[part]).long()
            contrasts = None if asked.contrasts is None else torch.from_numpy(asked.contrasts[part]).long()
            if from_features is None:
                found = method(lens, self.pictures[rows], targets, contrasts=contrasts, seed=self.plan.seed)
            else:
                features, logits = self.seen(architecture)
                hashes = [self.known.hashes[int(row)] for row in rows]
                found = from_features(
                    lens,
                    features[rows],
                    logits[rows],
                    targets,
                    contrasts=contrasts,
                    image_hashes=hashes,
                    seed=self.plan.seed,
                    **of_pictures(method, lens, self.pictures[rows]),
                )
            if not isinstance(found, list) or len(found) != len(rows):
                # Let the reader of results say what is wrong.
                return found
            results += found
        return results

    def _maps(self, unit: Unit) -> Scores:
        (main,) = [asked for asked in self.asked(unit.architecture) if asked.name == MAIN]
        classifier = self.classifiers[unit.architecture]
        if unit.spec is None:
            maps = MAP_FLOORS[unit.method](self.known, main)
        else:
            maps = self._map_answers(unit.spec, classifier, main)
        masks = {name: mask[main.rows] for name, mask in self.known.masks.items()}
        values = score_maps(maps, main.truth, masks) | self._curves(classifier, main, maps)
        return {"": {main.name: self._summaries(values)}}

    def _curves(self, classifier: Classifier, asked: Asked, maps: Array) -> dict[str, Array]:
        """Insertion and deletion areas of the first pictures, to show where these proxies mislead."""
        areas = {curve.game: np.full(len(maps), np.nan) for curve in RISE_CURVES}
        for n in range(min(CURVE_PICTURES, len(maps))):
            picture = self.pictures[int(asked.rows[n])]
            heat = torch.from_numpy(np.array(maps[n : n + 1])).float()
            (found,) = curve_areas_of(
                classifier, picture, heat, int(asked.targets[n]), curves=RISE_CURVES, seed=self.plan.seed
            )
            for name, value in found.values.items():
                game = name.split("-")[0]
                if game in areas:
                    areas[game][n] = value
        return areas

    def _map_answers(self, spec: MethodSpec, classifier: Classifier, asked: Asked) -> Array:
        method = spec.make()
        size = (self.plan.size, self.plan.size)
        maps = []
        for part in np.array_split(np.arange(len(asked.rows)), max(1, -(-len(asked.rows) // BATCH))):
            pictures = self.pictures[torch.from_numpy(asked.rows[part])]
            targets = torch.from_numpy(asked.targets[part]).long()
            contrasts = None if asked.contrasts is None else torch.from_numpy(asked.contrasts[part]).long()
            found = method(classifier, pictures, targets, contrasts=contrasts, seed=self.plan.seed)
            maps.append(read_maps(found, len(part), size))
        return np.concatenate(maps)

    def _dictionary(self, architecture: str) -> Dictionary:
        """A dictionary over the features of the scenes that the first of the lenses is fitted on."""
        features, _ = self.fit_pairs(architecture, self.plan.fits[0])
        return scene_dictionary(self.classifiers[architecture], features)

    def _traces(self, spec: MethodSpec, architecture: str, learnt: bool) -> Scores:
        """The first pictures traced as they are, with their largest cause changed, and for one and the same class."""
        (main,) = [asked for asked in self.asked(architecture) if asked.name == MAIN]
        dictionaries = (self.dictionary(architecture),) if learnt else ()
        lens, method = Traced(self.classifiers[architecture], dictionaries), spec.make()
        count = min(TRACE_PICTURES, len(main.rows))

        def trace(pictures: Tensor, targets: Array, contrasts: Array | None) -> list[Trace]:
            against = None if contrasts is None else torch.from_numpy(contrasts).long()
            found = method(lens, pictures, torch.from_numpy(targets).long(), contrasts=against, seed=self.plan.seed)
            return read_traces(found, len(pictures))

        pictures = self.pictures[torch.from_numpy(main.rows[:count])]
        scenes = [self.tables[architecture].scenes[int(row)] for row in main.rows[:count]]
        targets = main.targets[:count]
        contrasts = None if main.contrasts is None else main.contrasts[:count]
        traces = trace(pictures, targets, contrasts)
        values = {name: np.full(len(main.rows), np.nan) for name in TRACE_SCORES}
        for n in range(count):
            other = variations(scenes[n], main.truth, n)
            if other is None:
                continue
            number = len(other.scenes)
            against = None if contrasts is None else contrasts[[n] * number]
            changed = trace(scene_tensor(other.scenes, self.plan.size), targets[[n] * number], against)
            for name, value in score_trace(traces[n], changed).items():
                values[name][n] = value
        # Contributions of one latent to different classes cannot be compared.
        usual = int(np.bincount(targets).argmax())
        alike = traces
        if contrasts is not None or (targets != usual).any():
            alike = trace(pictures, np.full(count, usual), None)
        tops = [[c.latent for c in sorted(t.contributions, key=lambda c: -c.value)[:TOP]] for t in traces]
        values["purity"][:count] = purities(alike, tops, scenes, self.plan.seed)
        return {"": {main.name: self._summaries(values)}}

    def _summaries(self, values: Mapping[str, Array]) -> dict[str, Any]:
        return {name: summarise(score, seed=self.plan.seed) for name, score in values.items()}
