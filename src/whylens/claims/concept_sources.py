"""Networks with dictionaries for the claims about concepts: the plan's lens on real pictures, B-cos networks on planted scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from whylens.claims.world import ClaimWorld, UntestableError
from whylens.errors import InputError
from whylens.store import atomic_folder

if TYPE_CHECKING:
    from torch import Tensor

    from whylens.classifiers import Classifier
    from whylens.dictionaries import Dictionary
    from whylens.lens import Lens
    from whylens.metrics.backbones import Backbone
    from whylens.planted.scene import Scene

BCOS = "bcos"
#: Scenes that a planted B-cos network's dictionary is trained on, at most; each gives all its positions.
DICTIONARY_SCENES = 1000
#: Accuracy needs more pictures than consistency, and costs two passes a picture.
ACCURACY_PICTURES = 2500


@dataclass(frozen=True, eq=False)
class ConceptSource:
    """A lens with dictionaries, pictures to measure it on, and eyes of another network for C2.

    Attributes:
        lens: with one dictionary at least.
        pictures: files.
        eyes: the backbone whose features tell how alike places look.
        classes: true classes (P,), where they are known.
    """

    lens: Lens
    pictures: Sequence[Path]
    eyes: Backbone
    classes: np.ndarray | None = None


def check_lens(world: ClaimWorld) -> None:
    """Load the lens, the labels and the pictures' names before anything is measured.

    Raises:
        InputError: for an unknown lens or labels that cannot be read, and whatever else loading raises.
        UntestableError: for a lens without dictionaries.
    """
    lens = _lens(world)
    pictures = world.pictures(world.plan.concept_limit)
    _classes(world, lens, pictures)


def concept_sources(world: ClaimWorld) -> tuple[list[ConceptSource], tuple[str, ...]]:
    """Everything to measure concepts on, and what is missing, in words. Kept for the other claims of the run.

    Raises:
        UntestableError: where there is nothing at all.
    """
    if "concept sources" not in world.shared:
        world.shared["concept sources"] = _sources(world)
    found: tuple[list[ConceptSource], tuple[str, ...]] = world.shared["concept sources"]
    if not found[0]:
        raise UntestableError(" ".join(found[1]))
    return found


def _sources(world: ClaimWorld) -> tuple[list[ConceptSource], tuple[str, ...]]:
    from whylens.metrics.backbones import load_backbone

    sources: list[ConceptSource] = []
    notes: tuple[str, ...] = ()
    try:
        pictures = world.pictures(world.plan.concept_limit)
        lens = _lens(world)
        classes = _classes(world, lens, pictures)
        sources.append(ConceptSource(lens, pictures, load_backbone("builtin:tiny"), classes))
    except UntestableError as reason:
        notes = (str(reason),)
    return [*sources, *(_planted(world, rule) for rule in _bcos_rules(world))], notes


def _lens(world: ClaimWorld) -> Lens:
    from whylens.lens import Lens

    lens = Lens.load(world.plan.lens)
    if not lens.dictionaries:
        raise UntestableError(f"The lens {lens.name} has no dictionary; `whylens fit --traces` trains some.")
    return lens


def _classes(world: ClaimWorld, lens: Lens, pictures: Sequence[Path]) -> np.ndarray | None:
    """True classes of pictures that all have one."""
    from whylens.evaluation.labels import Labels

    if world.plan.labels is None:
        return None
    labels = Labels(world.plan.labels, lens.classifier.class_names)
    found = [labels.of(picture) for picture in pictures]
    missing = [picture.name for picture, label in zip(pictures, found, strict=True) if label is None]
    if missing:
        raise InputError(f"The table of labels {world.plan.labels.name} says nothing of {missing[0]}.")
    return np.array(found)


def labelled(world: ClaimWorld, source: ConceptSource) -> tuple[list[Path], np.ndarray]:
    """All labelled pictures that accuracy may be measured on, and their classes.

    Those of the plan's folder, also where fewer serve the rest; a planted source has its own.
    """
    if source.classes is None:
        raise InputError(f"The pictures of {source.lens.name} have no labels.")
    if world.plan.images is None or source.pictures[0].is_relative_to(world.work):
        return list(source.pictures), source.classes
    pictures = world.pictures(ACCURACY_PICTURES)
    classes = _classes(world, source.lens, pictures)
    return pictures, source.classes if classes is None else classes


def _bcos_rules(world: ClaimWorld) -> list[str]:
    from whylens.planted.benchmark import Plan, classifiers_of

    plan = Plan(rules=world.plan.rules, architectures=world.plan.architectures, scenes=world.plan.scenes)
    return [rule for rule, architecture in classifiers_of(plan, world.organisms) if architecture == BCOS]


def _planted(world: ClaimWorld, rule: str) -> ConceptSource:
    """A planted B-cos network: a dictionary over the positions of its features, and its evaluation scenes as files."""
    from whylens.metrics.backbones import encoder_backbone
    from whylens.planted.benchmark_lens import fit_scene_lens, fit_scenes, readable_phrases
    from whylens.planted.rules import draw

    plan = world.plan
    classifier = world.organisms.load_organism(rule, BCOS)
    encoder = world.organisms.load_scene_encoder()
    lens = fit_scene_lens(
        classifier,
        encoder,
        rule,
        "own",
        readable_phrases(encoder)["all"],
        count=plan.fit_scenes,
        seed=plan.seed,
        size=plan.size,
        cache=world.cache,
    )
    scenes = fit_scenes(rule, "own", min(plan.fit_scenes, DICTIONARY_SCENES), plan.seed)
    lens = replace(lens, name=f"planted:{rule}-{BCOS}", dictionary=_dictionary(classifier, scenes, plan.size))
    drawn = draw(rule, min(plan.scenes, plan.concept_limit), plan.seed, "evaluation")
    files = _files(world.work / f"scenes--{rule}-{len(drawn.scenes)}-{plan.size}-{plan.seed}", drawn.scenes, plan.size)
    return ConceptSource(lens, files, encoder_backbone(encoder), np.asarray(drawn.labels))


def _dictionary(classifier: Classifier, scenes: Sequence[Scene], size: int) -> Dictionary:
    import torch

    from whylens.dictionaries import FeatureTensor, Origin, train_dictionary
    from whylens.lens.trace_dictionaries import trace_settings
    from whylens.planted.benchmark_cache import scene_tensor

    def vectors(part: Tensor) -> Tensor:
        return classifier.features(part).flatten(2).transpose(1, 2).flatten(0, 1)

    x = scene_tensor(scenes, size)
    with torch.no_grad():
        features = torch.cat([vectors(part) for part in x.split(64)])
    # Whole pictures are held out, the last tenth.
    held = len(features) - len(features) // len(x) * max(1, len(x) // 10)
    source = FeatureTensor(features[:held], features[held:], origin=Origin.of(classifier))
    return train_dictionary(source, trace_settings())


def _files(folder: Path, scenes: Sequence[Scene], size: int) -> list[Path]:
    """Scenes as pictures on the disk, which is what an evaluation reads."""
    from PIL import Image

    from whylens.planted.rendering import render_batch

    if not folder.is_dir():
        images = render_batch(scenes, size).images
        with atomic_folder(folder) as part:
            for n, image in enumerate(images):
                Image.fromarray(image).save(part / f"{n:04d}.png")
    return sorted(folder.glob("*.png"))
