"""MACO: pictures that show what feature units or latents respond to, with the magnitude spectrum of natural pictures.

Only phases are optimised (specification 1.3; Fel et al., arXiv 2306.06805), so that no regulariser is needed: for a set U
of units the sum over U of their mean value in random crops of the canvas is maximised. Two deliberate differences from
TEXTER's code: the objective is taken before ReLU and selection, so that a latent that is silent still has a gradient,
and everything random comes from the seed and the units, so that a set gives the same picture whatever else is computed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from whylens.classifiers.precision import PRECISIONS, arithmetic
from whylens.classifiers.quiet import quiet
from whylens.dictionaries import Dictionary
from whylens.errors import InputError, ModelError, unknown_name
from whylens.randomness import torch_generator
from whylens.words.maco_cache import MacoCache, image_key
from whylens.words.maco_canvas import crop, on_white, random_boxes, synthesise
from whylens.words.nadam import NAdam
from whylens.words.spectrum import power_law_spectrum, resized_spectrum

if TYPE_CHECKING:
    from whylens.classifiers import Classifier

OBJECTIVES = ("pre-codes", "codes")
DECAYS = ("none", "cosine")
# Crops that tell at the end whether a unit fires.
CHECK_CROPS = 16
# The longer side of a kept picture; what is translated was computed from the whole canvas.
KEPT_SIDE = 224
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MacoSettings:
    """How a set of units is made visible.

    Attributes:
        steps: of the optimisation.
        canvas: side of the square canvas, relative to the longer side of the classifier's input (1280 for 224 pixels).
        crops: random crops of one step.
        smallest, largest: side of a crop, relative to the canvas; drawn uniformly.
        spread: standard deviation of a crop's centre, relative to the canvas; boxes may leave it, zeros lie outside.
        oversampling: crops are sampled at this multiple of the input's size and then reduced to it (bicubic).
        noise: amplitude of the normal and of the uniform noise on every crop.
        rate: learning rate of NAdam on the phases.
        decay: ``"none"``, or ``"cosine"`` to zero at the last step.
        objective: ``"pre-codes"``: values before ReLU and selection; ``"codes"``: after them, as TEXTER's code has it (a
            latent that is silent in a crop then has no gradient there).
        final_crops: of the finished picture, inside the canvas and without noise; they are what is translated.
        precision: of the network while optimising: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bf16 where the processor has it.
        preset: the preset that these settings started from.
    """

    steps: int = 512
    canvas: float = 1280 / 224
    crops: int = 6
    smallest: float = 0.25
    largest: float = 0.30
    spread: float = 0.15
    oversampling: float = 2.0
    noise: float = 0.05
    rate: float = 1.0
    decay: str = "none"
    objective: str = "pre-codes"
    final_crops: int = 6
    precision: str = "float32"
    preset: str = "paper"

    def validate(self) -> None:
        """Check every setting; raises InputError for the first that cannot be used."""
        for name, accepted in (("objective", OBJECTIVES), ("decay", DECAYS), ("precision", PRECISIONS)):
            if getattr(self, name) not in accepted:
                raise unknown_name(name, getattr(self, name), accepted)
        for name in ("steps", "crops", "final_crops"):
            if getattr(self, name) < 1:
                raise InputError(f"maco: {name} must be at least 1; it is {getattr(self, name)}.")
        for name in ("canvas", "oversampling", "rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"maco: {name} must be over 0; it is {getattr(self, name)}.")
        for name in ("noise", "spread"):
            if not getattr(self, name) >= 0:
                raise InputError(f"maco: {name} must not be negative; it is {getattr(self, name)}.")
        if not 0 < self.smallest <= self.largest <= 1:
            raise InputError(
                f"maco: crops must have 0 < smallest <= largest <= 1; they are {self.smallest} and {self.largest}."
            )


# Specification 1.3, but for the objective before selection.
PAPER = MacoSettings()
PRESETS = {
    "paper": PAPER,
    "fast": MacoSettings(
        steps=56, canvas=4.5, crops=6, oversampling=1.0, noise=0.0, decay="cosine", precision="auto", preset="fast"
    ),
}


def maco_preset(name: str = "fast", **changes: Any) -> MacoSettings:
    """The settings of a preset, some changed.

    Raises:
        InputError: for an unknown preset or setting, or a value that cannot be used.
    """
    if name not in PRESETS:
        raise unknown_name("MACO preset", name, PRESETS)
    known = [field.name for field in dataclasses.fields(MacoSettings)]
    for setting in changes:
        if setting not in known:
            raise unknown_name("MACO setting", setting, known)
    made = dataclasses.replace(PRESETS[name], **changes)
    made.validate()
    return made


def maco_settings(given: str | MacoSettings | Mapping[str, Any]) -> MacoSettings:
    """Settings from a preset's name, settings, or their values by name (as a record has them).

    Raises:
        InputError: as :func:`maco_preset`, and for anything else.
    """
    if isinstance(given, str):
        return maco_preset(given)
    if isinstance(given, Mapping):
        return maco_preset(str(given.get("preset", "fast")), **{k: v for k, v in given.items() if k != "preset"})
    if not isinstance(given, MacoSettings):
        raise InputError(f"MACO settings are a preset's name or MacoSettings; these are {given!r:.80}.")
    given.validate()
    return given


@dataclass(frozen=True, eq=False)
class ConceptImage:
    """What a set of units responds to.

    Attributes:
        units: their indices.
        picture: (h, w, 3) uint8, at most 224 pixels: the picture on white, transparent where the gradient never went.
        features: (final_crops, d) fp32 pooled features of the crops that are translated.
        values: (k,) mean pre-code of every unit over 16 crops of the opaque picture (the feature itself without a
            dictionary); peaks: (k,) its highest code there.
        history: (steps,) the objective at every step.
        passes: forward and backward passes of one crop that it took; 0 where it was found in the cache.
    """

    units: tuple[int, ...]
    picture: Tensor
    features: Tensor
    values: Tensor
    peaks: Tensor
    history: Tensor
    passes: float = 0.0

    @property
    def objective(self) -> float:
        """Sum of the units' mean pre-codes."""
        return float(self.values.sum())

    @property
    def silent(self) -> tuple[int, ...]:
        """Units that are active in none of the 16 crops."""
        return tuple(unit for unit, peak in zip(self.units, self.peaks.tolist(), strict=True) if not peak > 0)


def concept_images(
    classifier: Classifier,
    unit_sets: Sequence[Sequence[int]],
    *,
    dictionary: Dictionary | None = None,
    spectrum: Tensor | None = None,
    settings: MacoSettings | None = None,
    seed: int = 0,
    cache: Path | None = None,
    batch: int | None = None,
    strict: bool = True,
    progress: Progress | None = None,
) -> list[ConceptImage]:
    """One picture for each set of units.

    Args:
        classifier: whose features are made visible.
        unit_sets: indices of latents, or of feature units without a dictionary; the order in a set does not matter.
        dictionary: of these features.
        spectrum: (3, h, w) magnitudes, see :func:`whylens.words.estimate_spectrum`; 1 / frequency by default.
        settings: the preset ``fast`` by default.
        seed: of phases, crops and noise, together with the units of a set.
        cache: folder in which pictures are kept, found again by the content of everything that determines them.
        batch: sets that are optimised together; by default 1 on the CPU (so that a set gives exactly the same whatever
            its neighbours) and 8 elsewhere.
        strict: refuse a set whose units all stay silent; else see :attr:`ConceptImage.silent`.
        progress: called with (sets done, sets in all).

    Raises:
        InputError: settings or units that cannot be used; a dictionary of another classifier or layer.
        ModelError: where all units of a set stay silent (they are not tried again), or the network gives no finite gradient.

    Cost: ``steps * crops`` forward and backward passes of the network for each set that is not in the cache.
    """
    chosen = settings or PRESETS["fast"]
    chosen.validate()
    if dictionary is not None:
        dictionary.check(classifier)
    count = classifier.width if dictionary is None else dictionary.latents
    sets = [_checked(units, count) for units in unit_sets]
    store = None if cache is None else MacoCache(cache)
    keys = {}
    if store is not None:
        keys = {u: image_key(classifier, dictionary, spectrum, chosen, u, seed) for u in dict.fromkeys(sets)}
    made: dict[tuple[int, ...], ConceptImage] = {}
    for units in dict.fromkeys(sets):
        found = None if store is None else store.read(keys[units])
        if found is not None:
            made[units] = ConceptImage(
                units, found["picture"], found["features"], found["values"], found["peaks"], found["history"]
            )
    missing = [units for units in dict.fromkeys(sets) if units not in made]
    at_once = batch or (1 if classifier.device.type == "cpu" else 8)
    for start in range(0, len(missing), at_once):
        group = missing[start : start + at_once]
        canvas = optimise(classifier, group, dictionary=dictionary, spectrum=spectrum, settings=chosen, seed=seed)
        for image in finished(classifier, group, dictionary, canvas, chosen):
            made[image.units] = image
            if store is not None:
                store.write(keys[image.units], image)
        if progress is not None:
            progress(len(made), len(dict.fromkeys(sets)))
    for units in sets if strict else ():
        _refuse_silent(made[units], dictionary)
    return [made[units] for units in sets]


def _checked(units: Sequence[int], count: int) -> tuple[int, ...]:
    found = tuple(sorted({int(unit) for unit in units}))
    if not found:
        raise InputError("A set of units to make visible is empty.")
    if found[0] < 0 or found[-1] >= count:
        bad = found[0] if found[0] < 0 else found[-1]
        raise InputError(f"There is no unit {bad}; accepted are 0 to {count - 1}.")
    return found


def _refuse_silent(image: ConceptImage, dictionary: Dictionary | None) -> None:
    if len(image.silent) == len(image.units):
        what = "latents" if dictionary is not None else "feature units"
        raise ModelError(
            f"No picture makes any of the {what} {', '.join(map(str, image.units))} respond: they stay silent in all "
            f"{CHECK_CROPS} crops after {len(image.history)} steps. They may be dead; choose others, or more steps."
        )


@dataclass(frozen=True, eq=False)
class Canvas:
    """N optimised canvases.

    Attributes:
        images: (N, 3, S, S) in (0, 1); transparency: (N, S, S) absolute gradients summed over steps, mean of channels.
        history: (N, steps) the objective; generators: of each set, for what is drawn next.
    """

    images: Tensor
    transparency: Tensor
    history: Tensor
    generators: Sequence[torch.Generator]


def optimise(
    classifier: Classifier,
    sets: Sequence[tuple[int, ...]],
    *,
    dictionary: Dictionary | None,
    spectrum: Tensor | None,
    settings: MacoSettings,
    seed: int,
) -> Canvas:
    """Optimise the phases of one canvas for each set, all in one batch; see :func:`concept_images`."""
    device, size = classifier.device, classifier.size
    side = max(8, round(settings.canvas * max(size)))
    generators = [torch_generator(seed, "maco", *map(str, units)) for units in sets]
    natural = (
        power_law_spectrum((side, side)) if spectrum is None else resized_spectrum(spectrum, (side, side // 2 + 1))
    )
    history = []
    with torch.inference_mode(False), torch.enable_grad(), quiet(classifier.module):
        phase = torch.stack([torch.randn(3, side, side // 2 + 1, generator=g) for g in generators]).to(device)
        magnitude = natural.clone().to(device)
        units = Units.of(sets, dictionary, device)
        optimiser = NAdam(phase)
        transparency = torch.zeros(len(sets), side, side, device=device)
        for step in range(settings.steps):
            phase.requires_grad_()
            images = synthesise(phase, magnitude, side)
            boxes = torch.stack([random_boxes(settings, settings.crops, g) for g in generators])
            crops = crop(images, boxes, size, settings.oversampling)
            if settings.noise:
                drawn = torch.cat([_noise((settings.crops, 3, *size), g) for g in generators])
                crops = crops + settings.noise * drawn.to(device)
            with arithmetic(settings.precision, device):
                features = classifier.features(crops)
            values = units.values(features.float(), settings.crops, codes=settings.objective == "codes")
            objective = values.sum(1)
            # One call for both, and no gradient of any weight is ever computed.
            seen, gradient = torch.autograd.grad(-objective.sum(), (images, phase))
            if not bool(torch.isfinite(gradient).all()):
                raise ModelError(f"maco: step {step} gave no finite gradient of the units by the picture.")
            transparency += seen.abs().mean(1)
            history.append(objective.detach())
            phase = optimiser.step(gradient, settings.rate * _factor(step, settings))
        with torch.no_grad():
            images = synthesise(phase, magnitude, side)
    return Canvas(images, transparency, torch.stack(history, 1), generators)


def finished(
    classifier: Classifier,
    sets: Sequence[tuple[int, ...]],
    dictionary: Dictionary | None,
    canvas: Canvas,
    settings: MacoSettings,
) -> list[ConceptImage]:
    """What is kept of optimised canvases; see :class:`ConceptImage`. Cost: 16 + ``final_crops`` forward passes for each set."""
    size = classifier.size
    units = Units.of(sets, dictionary, classifier.device)
    checked = torch.stack([random_boxes(settings, CHECK_CROPS, g) for g in canvas.generators])
    final = torch.stack([random_boxes(settings, settings.final_crops, g, inside=True) for g in canvas.generators])
    with torch.no_grad():
        shown = on_white(canvas.images, canvas.transparency)
        features = classifier.features(crop(canvas.images, checked, size, settings.oversampling)).float()
        plain, coded = units.values(features, CHECK_CROPS), units.peaks(features, CHECK_CROPS)
        translated = classifier.pooled(crop(shown, final, size, settings.oversampling)).float()
        side = min(KEPT_SIDE, shown.shape[-1])
        small = interpolate(shown, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    pictures = (small.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
    translated = translated.unflatten(0, (len(sets), -1)).cpu()
    return [
        ConceptImage(
            units=members,
            picture=pictures[i].contiguous(),
            features=translated[i].contiguous(),
            values=plain[i, : len(members)].cpu().contiguous(),
            peaks=coded[i, : len(members)].cpu().contiguous(),
            history=canvas.history[i].float().cpu().contiguous(),
            passes=float(settings.steps * settings.crops + (CHECK_CROPS + settings.final_crops) / 2),
        )
        for i, members in enumerate(sets)
    ]


@dataclass(frozen=True, eq=False)
class Units:
    """The units of N sets, padded to the largest: ``index`` (N, k) and ``real`` (N, k) tell which entries count."""

    index: Tensor
    real: Tensor
    dictionary: Dictionary | None

    @classmethod
    def of(cls, sets: Sequence[Sequence[int]], dictionary: Dictionary | None, device: torch.device) -> Units:
        """From sets of indices."""
        most = max(len(units) for units in sets)
        index = torch.tensor([[*units, *[0] * (most - len(units))] for units in sets], device=device)
        real = torch.tensor([[True] * len(units) + [False] * (most - len(units)) for units in sets], device=device)
        return cls(index, real, dictionary)

    def values(self, features: Tensor, crops: int, *, codes: bool = False) -> Tensor:
        """Mean value (N, k) over the crops of every unit, 0 in the padding; features (N * crops, d) or (.., d, h, w).

        Before selection a latent is an affine function of the features, so that its mean over positions is that of the
        pooled features.
        """
        if codes and self.dictionary is not None:
            return self._codes(features, crops).mean(1) * self.real
        pooled = features.flatten(2).mean(2) if features.ndim == 4 else features
        per_set = pooled.unflatten(0, (len(self.index), crops))
        if self.dictionary is None:
            picked = per_set.gather(2, self.index[:, None].expand(-1, crops, -1))
            return picked.mean(1) * self.real
        rows = self.dictionary.encoder.to(pooled)[self.index]
        means = per_set.mean(1) - self.dictionary.mean.to(pooled)
        pre = torch.einsum("nd,nkd->nk", means, rows) + self.dictionary.bias.to(pooled)[self.index]
        return pre * self.real

    def peaks(self, features: Tensor, crops: int) -> Tensor:
        """Highest code (N, k) in any crop (and position), as the dictionary selects them."""
        return self._codes(features, crops).amax(1) * self.real

    def _codes(self, features: Tensor, crops: int) -> Tensor:
        codes = features.relu() if self.dictionary is None else self.dictionary.encode(features)
        pooled = codes.flatten(2).mean(2) if codes.ndim == 4 else codes
        return pooled.unflatten(0, (len(self.index), crops)).gather(2, self.index[:, None].expand(-1, crops, -1))


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) + torch.rand(shape, generator=generator) - 0.5


def _factor(step: int, settings: MacoSettings) -> float:
    return 1.0 if settings.decay == "none" else 0.5 * (1 + math.cos(math.pi * step / settings.steps))
