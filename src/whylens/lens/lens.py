"""The fitted bundle that explains one classifier: save, load, explain."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import whylens
from whylens.alignment import Aligner, Statistics
from whylens.banks import ConceptBank
from whylens.canonical import content_hash
from whylens.classifiers import Classifier
from whylens.classifiers.pictures import as_colours
from whylens.dictionaries import Dictionary
from whylens.encoders import Encoder, load_encoder
from whylens.errors import InputError, PictureError, WhylensError, unknown_name
from whylens.images import Picture, read_picture
from whylens.lens.faithfulness import measure_words
from whylens.lens.maps import make_maps, map_phrases, measure_maps
from whylens.lens.thumbnails import Thumbnails, layer_key, thumbnails_of_atlas, trace_pictures, words_pictures
from whylens.lens.traces import map_concepts
from whylens.lens.visuals import check_visualise, visualise_units, without_units
from whylens.randomness import picture_hash
from whylens.registry import get_method
from whylens.types import ClassScore, Explanation, HeatMap, Prediction, Provenance, Trace, UnitPicture, Words
from whylens.words.base import of_pictures

if TYPE_CHECKING:
    from whylens.lens.atlas import Atlas

DEFAULT_METHODS = ("faithtrace",)
RUNNER_UP = "runner-up"
PictureSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Picture


@dataclass(frozen=True)
class EncoderReference:
    """Which encoder a lens was fitted with: its source and fingerprint; it is not needed to explain."""

    source: str
    fingerprint: str
    width: int
    templates: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Lens:
    """Everything needed to explain ONE classifier in words, without its encoder.

    Make one with :func:`whylens.fit` or :meth:`Lens.load`.

    Attributes:
        classifier: the classifier it explains.
        aligner: affine maps between its features and the encoder's space, with their held-out quality.
        bank: candidate phrases; ``embeddings`` (T, m) are theirs, unit fp32.
        statistics: reference statistics of features and phrases.
        encoder: which encoder the embeddings are from.
        name: of the lens; ``report``: how it was fitted.
        dictionary: a sparse autoencoder over features of the classifier, where one was fitted.
        more_dictionaries: others, of further layers, for concept traces across layers.
        latent_exemplars: (K, m) mean image embedding of the reference pictures that activate each of its latents most
            (20 at most; the mean of all where none does), where it was fitted with the lens.
        class_embeddings: (C, m) unit embeddings of the class names as the encoder reads them, NaN rows for names that
            it does not know; None where it knows none.
        spectrum: (3, h, w) mean magnitude spectrum of the pictures of the fit, see
            :func:`whylens.words.estimate_spectrum`; it makes feature visualisations look natural.
        reference_features: (N, d) pooled features of some pictures of the fit, and ``reference_embeddings`` (N, m) of the
            same, from which :mod:`whylens.words.substitution` learns; None in lenses that keep none.
        thumbnails: the pictures that activate each unit most, see :meth:`top_pictures`; None where none were kept. They
            illustrate and determine nothing, so the fingerprint leaves them out.
    """

    classifier: Classifier
    aligner: Aligner
    bank: ConceptBank
    embeddings: Tensor
    statistics: Statistics
    encoder: EncoderReference
    name: str = "lens"
    report: Mapping[str, Any] = field(default_factory=dict)
    dictionary: Dictionary | None = None
    latent_exemplars: Tensor | None = None
    class_embeddings: Tensor | None = None
    spectrum: Tensor | None = None
    reference_features: Tensor | None = None
    reference_embeddings: Tensor | None = None

    more_dictionaries: tuple[Dictionary, ...] = ()
    thumbnails: Thumbnails | None = None

    @property
    def dictionaries(self) -> tuple[Dictionary, ...]:
        """All dictionaries, ``dictionary`` first."""
        return (*(() if self.dictionary is None else (self.dictionary,)), *self.more_dictionaries)

    @property
    def fingerprint(self) -> str:
        """sha256 over the classifier's fingerprint and everything the lens adds to it."""
        cached = self.__dict__.get("_fingerprint")
        if cached is None:
            arrays = [
                t.numpy() for _, t in sorted({**self.aligner.to_tensors(), **self.statistics.to_tensors()}.items())
            ]
            later = (
                self.latent_exemplars,
                self.class_embeddings,
                self.spectrum,
                self.reference_features,
                self.reference_embeddings,
            )
            arrays += [t.numpy() for t in later if t is not None]
            extra = [dictionary.fingerprint for dictionary in self.dictionaries]
            cached = content_hash(
                self.classifier.fingerprint, self.bank.fingerprint, self.embeddings.numpy(), *arrays, *extra
            )
            object.__setattr__(self, "_fingerprint", cached)
        return str(cached)

    @staticmethod
    def load(
        source: str | os.PathLike[str],
        *,
        classifier: Classifier | None = None,
        device: str | torch.device | None = None,
    ) -> Lens:
        """Load a built-in lens by name, or a folder written by :meth:`save`.

        Args:
            source: ``"tiny-imagenet"`` or a folder.
            classifier: the classifier, where the lens was fitted for a module of your own; checked by its fingerprint.
            device: where the classifier runs; the CPU by default.

        Raises:
            InputError: for an unknown name, a folder that holds no lens, or a classifier with other weights.
        """
        from whylens.lens.storage import load_lens

        return load_lens(source, classifier=classifier, device=device)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the lens as a folder (lens.json and lens.safetensors), atomically.

        Raises:
            StoreError: when the folder exists and ``overwrite`` is false, or cannot be written.
        """
        from whylens.lens.storage import save_lens

        return save_lens(self, Path(folder), overwrite=overwrite)

    def explain(
        self,
        picture: PictureSource,
        *,
        methods: str | Sequence[str] = DEFAULT_METHODS,
        target: int | str | None = None,
        contrast: int | str | None = None,
        seed: int = 0,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        measure: bool = True,
        visualise: int = 0,
    ) -> Explanation:
        """Explain one picture.

        Args:
            picture: path, bytes, PIL image or array.
            methods: names of registered methods of any kind, in the order in which they are shown.
            target: class index or name; the predicted class by default.
            contrast: class index or name, or ``"runner-up"``, to ask "why the target rather than this". Without it the
                target's own logit is explained, and the first words method is asked about the runner-up as well.
            seed: of every random draw.
            settings: keyword settings for each method by name.
            measure: whether faithfulness is measured, beside random phrases and random orders of pixels.
            visualise: for so many deciding units (those that contribute most, of words methods that have some) a picture
                is optimised that shows what the unit responds to; see :func:`whylens.lens.visuals.visualise_units`.

        Raises:
            PictureError: for a picture that cannot be read.
            InputError: for an unknown class or method.
            ModelError: for a method that this network does not allow, such as attention maps of a CNN.

        Cost: one forward pass for all words methods together; maps state their own. Measuring words takes evaluations
        of the head; measuring M maps 54 (M + 3) + 3 forwards of the picture, counted as half a pass each in
        ``provenance.passes``.
        """
        (result,) = self.explain_batch(
            [picture],
            methods=methods,
            target=target,
            contrast=contrast,
            seed=seed,
            settings=settings,
            measure=measure,
            visualise=visualise,
        )
        if isinstance(result, PictureError):
            raise result
        return result

    def explain_batch(
        self,
        pictures: Sequence[PictureSource],
        *,
        methods: str | Sequence[str] = DEFAULT_METHODS,
        target: int | str | None = None,
        contrast: int | str | None = None,
        seed: int = 0,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        measure: bool = True,
        visualise: int = 0,
    ) -> list[Explanation | PictureError]:
        """Explain several pictures in one batch; a picture that cannot be read gives its error in its place.

        Arguments and costs as in :meth:`explain`. Maps are made picture by picture, so that each is what its
        picture gives alone; to make many maps of a batch fast, call the method itself.
        """
        names = [methods] if isinstance(methods, str) else list(methods)
        if not names:
            raise InputError("No method was asked for.")
        check_visualise(visualise)
        entries = {name: get_method(name) for name in names}
        unused = sorted(set(settings or {}) - set(names))
        if unused:
            raise unknown_name("method in settings", unused[0], names)
        made = {}
        for name, entry in entries.items():
            try:
                made[name] = entry.factory(**dict((settings or {}).get(name, {})))
            except TypeError as error:
                raise InputError(f"Method {name!r}: {error}") from error
        target_index = None if target is None else self.class_index(target)
        contrast_index = None if contrast in (None, RUNNER_UP) else self.class_index(contrast)
        if target_index is not None and target_index == contrast_index:
            raise InputError(f"Target and contrast are the same class, {self.classifier.class_names[target_index]!r}.")

        started = time.perf_counter()
        read: list[Picture | PictureError] = []
        for source in pictures:
            try:
                read.append(read_picture(source))
            except PictureError as error:
                read.append(error)
        good = [p for p in read if isinstance(p, Picture)]
        results = iter(
            self._explain(
                good,
                made,
                {n: e.kind for n, e in entries.items()},
                target_index,
                contrast,
                contrast_index,
                seed,
                started,
                measure,
                visualise,
            )
            if good
            else []
        )
        return [item if isinstance(item, PictureError) else next(results) for item in read]

    def _explain(
        self,
        pictures: Sequence[Picture],
        methods: Mapping[str, Any],
        kinds: Mapping[str, str],
        target: int | None,
        contrast: int | str | None,
        contrast_index: int | None,
        seed: int,
        started: float,
        measure: bool,
        visualise: int,
    ) -> Iterator[Explanation]:
        classifier = self.classifier
        x = torch.stack([classifier.preprocess(p) for p in pictures]).to(classifier.device)
        hashes = [picture_hash(p) for p in x]
        with torch.no_grad():
            features, logits = classifier.features_and_logits(x)
        logits = logits.float()
        if not bool(torch.isfinite(logits).all()):
            raise WhylensError("The classifier gave NaN or infinite logits for these pictures.")
        targets = logits.argmax(1) if target is None else torch.full((len(x),), target, device=logits.device)
        runner_up = logits.scatter(1, targets[:, None], -torch.inf).argmax(1)
        contrasts: Tensor | None = None
        if contrast == RUNNER_UP:
            contrasts = runner_up
        elif contrast_index is not None:
            contrasts = torch.full((len(x),), contrast_index, device=logits.device)
            if bool((contrasts == targets).any()):
                raise InputError(
                    f"The contrast {classifier.class_names[contrast_index]!r} is the explained class of a picture itself; choose another, or {RUNNER_UP!r}."
                )

        words: dict[str, list[Words]] = {}
        maps: dict[str, list[HeatMap]] = {}
        traces: dict[str, list[Trace]] = {}
        asked_runner_up = False
        for name, method in methods.items():
            if kinds[name] == "words":
                embeddings = of_pictures(method, self, x)

                def ask(
                    against: Tensor | None, method: Any = method, seen: dict[str, Tensor] = embeddings
                ) -> list[Words]:
                    if getattr(method, "layer", None) is not None:
                        return list(method(self, x, targets, contrasts=against, seed=seed))
                    return list(
                        method.from_features(
                            self,
                            features,
                            logits,
                            targets,
                            contrasts=against,
                            image_hashes=hashes,
                            seed=seed,
                            **seen,
                        )
                    )

                words[name] = ask(contrasts)
                if contrasts is None and logits.shape[1] > 1 and not asked_runner_up:
                    asked_runner_up = True
                    words[f"{name}:{RUNNER_UP}"] = ask(runner_up)
            elif kinds[name] == "map":
                maps[name] = make_maps(method, classifier, x, targets, contrasts, seed)
            else:
                traces[name] = list(method(self, x, targets, contrasts=contrasts, seed=seed))

        visuals: dict[str, list[dict[str, UnitPicture]]] = {}
        if visualise:
            through = [n for n, results in words.items() if ":" not in n and any(w.units for w in results)]
            if not through:
                raise without_units(list(methods))
            visuals = {n: visualise_units(self, words[n], visualise, seed=seed) for n in through}

        probabilities = classifier.probabilities(logits).float().cpu()
        logits = logits.cpu()
        shares = (time.perf_counter() - started) / len(x)
        for i, picture in enumerate(pictures):
            began = time.perf_counter()
            faithfulness: dict[str, float] = {}
            phrase_maps: dict[str, dict[str, np.ndarray]] = {}
            notes, phrase_passes = [*(self._notes() if words else ())], 0.0
            for name, results in words.items():
                if ":" in name:
                    continue
                if measure:
                    measured = measure_words(self, features[i], results[i], seed=seed, image_hash=hashes[i])
                    faithfulness.update({f"{name}: {key}": value for key, value in measured.items()})
                try:
                    found, spent = map_phrases(self, methods[name], results[i], x[i], features[i])
                except InputError as error:
                    notes.append(f"No maps of phrases: {error}")
                else:
                    phrase_passes += spent
                    phrase_maps.update({name: found} if found else {})
            concept_maps: dict[str, dict[str, np.ndarray]] = {}
            for name, shown in traces.items():
                try:
                    drawn, spent = map_concepts(self, methods[name], shown[i], x[i])
                except InputError as error:
                    notes.append(f"No maps of concepts: {error}")
                else:
                    phrase_passes += spent
                    concept_maps.update({name: drawn} if drawn else {})
            pictured = {name: trace_pictures(self, methods[name], shown[i]) for name, shown in traces.items()}
            pictured |= {name: words_pictures(self, results[i]) for name, results in words.items()}
            before = time.perf_counter()
            asked = {name: results[i] for name, results in maps.items()} if measure else {}
            scored = measure_maps(classifier, x[i], asked, seed=seed, image_hash=hashes[i])
            finished = time.perf_counter()
            yield Explanation(
                prediction=self._prediction(logits[i], probabilities[i]),
                target=self._score(int(targets[i]), logits[i], probabilities[i]),
                contrast=None if contrasts is None else self._score(int(contrasts[i]), logits[i], probabilities[i]),
                results={name: results[i] for name, results in words.items()},
                maps={name: results[i] for name, results in maps.items()},
                traces={name: results[i] for name, results in traces.items()},
                faithfulness={**faithfulness, **scored.faithfulness},
                curves=scored.curves,
                phrase_maps=phrase_maps,
                concept_maps=concept_maps,
                unit_pictures={name: found for name, found in pictured.items() if found},
                unit_visuals={name: rows[i] for name, rows in visuals.items() if rows[i]},
                provenance=Provenance(
                    classifier=classifier.name,
                    classifier_fingerprint=classifier.fingerprint,
                    lens=self.name,
                    lens_fingerprint=self.fingerprint,
                    image_name=picture.name,
                    image_hash=picture.sha256,
                    pixels_hash=hashes[i],
                    seed=seed,
                    device=str(classifier.device),
                    precision="float32",
                    versions=library_versions(),
                    seconds=shares + finished - began,
                    passes=1.0
                    + phrase_passes
                    + scored.passes
                    + sum(results[i].passes for results in maps.values())
                    + sum(results[i].passes for results in traces.values()),
                    peak_memory_mb=peak_memory_mb(),
                    measuring_passes=scored.passes,
                    measuring_seconds=finished - before if asked else 0.0,
                ),
                picture=as_colours(x[i]),
                notes=tuple(notes),
            )

    def class_index(self, name: int | str) -> int:
        """The index of a class given by index or name (case does not matter).

        Raises:
            InputError: for an unknown class, with the nearest names.
        """
        names = self.classifier.class_names
        if isinstance(name, int) or name.lstrip("-").isdigit():
            index = int(name)
            if not 0 <= index < len(names):
                raise InputError(f"There is no class {index}; accepted are 0 to {len(names) - 1}.")
            return index
        folded = {n.lower(): i for i, n in reversed(list(enumerate(names)))}
        if name.lower() not in folded:
            raise unknown_name("class", name, names)
        return folded[name.lower()]

    def load_encoder(self) -> Encoder:
        """The encoder that the lens was fitted with, for adding phrases of your own.

        Raises:
            InputError: when the encoder at its source has changed.
        """
        encoder = load_encoder(self.encoder.source)
        if encoder.fingerprint != self.encoder.fingerprint:
            raise InputError(
                f"The encoder {self.encoder.source} is not the one this lens was fitted with (other weights). Fit the lens again."
            )
        return encoder

    def with_bank(self, bank: ConceptBank, encoder: Encoder | None = None) -> Lens:
        """The same lens with other candidate phrases; statistics are recomputed from the kept reference pictures.

        Args:
            bank: at least two phrases.
            encoder: the lens's encoder, if it is loaded already.

        Raises:
            InputError: for a phrase that the encoder does not know, or an encoder with other weights.
        """
        if encoder is None:
            encoder = self.load_encoder()
        elif encoder.fingerprint != self.encoder.fingerprint:
            raise InputError("This encoder is not the one the lens was fitted with.")
        embeddings = encoder.encode_phrases(bank.phrases, self.encoder.templates)
        statistics = self.statistics.with_phrases(self.aligner, embeddings)
        return replace(self, bank=bank, embeddings=embeddings, statistics=statistics)

    def with_dictionary(self, dictionary: Dictionary, latent_exemplars: Tensor | None = None) -> Lens:
        """The same lens with another dictionary of its classifier.

        Args:
            dictionary: of any of the classifier's layers.
            latent_exemplars: (K, m), see :class:`Lens`.

        Raises:
            InputError: a dictionary of another classifier, or exemplars of another shape.
        """
        dictionary.check(self.classifier, layer=False)
        expected = (dictionary.latents, self.aligner.embedding_width)
        if latent_exemplars is not None and tuple(latent_exemplars.shape) != expected:
            raise InputError(
                f"The latents' exemplars must have the shape {expected}; they have {tuple(latent_exemplars.shape)}."
            )
        return replace(self, dictionary=dictionary, latent_exemplars=latent_exemplars)

    def with_more_dictionaries(self, *dictionaries: Dictionary) -> Lens:
        """The same lens with these dictionaries besides ``dictionary``, each of another layer.

        Raises:
            InputError: a dictionary of another classifier, or two of one layer.
        """
        for dictionary in dictionaries:
            dictionary.check(self.classifier, layer=False)
        made = replace(self, more_dictionaries=tuple(dictionaries))
        layers = [dictionary.origin.features for dictionary in made.dictionaries]
        for layer in layers:
            if layers.count(layer) > 1:
                raise InputError(f"Two of the dictionaries encode the {layer}; a lens has one of each layer.")
        return made

    def top_pictures(self, layer: str | None, unit: int) -> list[UnitPicture]:
        """The pictures that activate a unit most, strongest first; an empty list where the lens keeps none of the layer.

        Args:
            layer: whose dictionary's latent is meant: the layer's name, ``"features"`` for what the head reads (its
                feature unit where the features have no dictionary), or None: the lens's first dictionary.
            unit: index of the latent or of the feature unit.

        Raises:
            InputError: a layer without a dictionary, or a unit that it does not have.
        """
        key, units = layer_key(self, layer)
        if not 0 <= unit < units:
            raise InputError(f"This layer has units from 0 to {units - 1}; {unit} was asked for.")
        return [] if self.thumbnails is None else self.thumbnails.of(key, unit)

    def with_atlas(self, *atlases: Atlas) -> Lens:
        """The same lens with the top pictures of atlases of its dictionaries, for lenses that ship without pictures.

        Raises:
            InputError: an atlas of none of the dictionaries.
        """
        thumbnails = self.thumbnails or Thumbnails((), {})
        for atlas in atlases:
            thumbnails = thumbnails.joined(thumbnails_of_atlas(atlas, self.dictionaries))
        return replace(self, thumbnails=thumbnails)

    def latent_names(self, dictionary: Dictionary) -> Mapping[int, str]:
        """Names of a dictionary's latents in words, those that earn one; see :func:`whylens.lens.name_latents`.

        Latents are named by their direction through the aligner, so only a dictionary of the features that it maps has
        names. The first call takes a fraction of a second.
        """
        from whylens.lens.latent_names import decoder_directions, maps_features_of, name_latents

        known: dict[str, dict[int, str]] = self.__dict__.setdefault("_latent_names", {})
        if dictionary.fingerprint not in known:
            named: dict[int, str] = {}
            if maps_features_of(self, dictionary):
                living = dictionary.frequency > 0 if bool(dictionary.frequency.any()) else None
                found = name_latents(self, decoder_directions(self, dictionary), alive=living)
                named = {k: latent.name for k, latent in enumerate(found) if latent.name is not None}
            known[dictionary.fingerprint] = named
        return known[dictionary.fingerprint]

    def _score(self, index: int, logits: Tensor, probabilities: Tensor) -> ClassScore:
        return ClassScore(index, self.classifier.class_names[index], float(logits[index]), float(probabilities[index]))

    def _prediction(self, logits: Tensor, probabilities: Tensor) -> Prediction:
        best = torch.argsort(logits, descending=True, stable=True)[:5].tolist()
        return Prediction(tuple(self._score(i, logits, probabilities) for i in best), self.classifier.link, len(logits))

    def _notes(self) -> tuple[str, ...]:
        report = self.aligner.report
        notes = [
            "Words are limited to what the features carry and to the phrases of the bank: "
            f"on {report.held_out} held-out pictures the aligner explains {max(0.0, report.r2):.0%} of the encoder's variance "
            f"(mean cosine {report.cosine:.2f})."
        ]
        if report.r2 < 0.2:
            notes.append("That is little: read the words as hints.")
        return tuple(notes)


def library_versions() -> dict[str, str]:
    """Versions of whylens, Python and the libraries that determine numbers."""
    versions = {"whylens": whylens.__version__, "python": sys.version.split()[0]}
    for package in ("torch", "torchvision", "numpy", "pillow"):
        versions[package] = importlib.metadata.version(package)
    return versions


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, in MB; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would also count what a parent process used before it started this one.
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 2**10, 1)
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
