"""Training a dictionary on stored features: a loop that can be interrupted anywhere and goes on to the same result."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from whylens.canonical import canonical_json, content_hash
from whylens.dictionaries.features import FeatureSource, FeatureTensor, Progress
from whylens.dictionaries.model import Dictionary
from whylens.dictionaries.objective import Weights, objective, start_thresholds, tangent_gradient
from whylens.dictionaries.settings import DictionarySettings
from whylens.errors import FitError, InputError
from whylens.randomness import torch_generator
from whylens.store import atomic_folder

# Vectors are shuffled within pools of so many, drawn from random blocks: a pool's pages stay in the file cache.
_POOL, _BLOCK = 2**19, 2**12
_EMA = 0.99


def train_dictionary(
    source: FeatureSource | Tensor,
    settings: DictionarySettings | None = None,
    *,
    checkpoint: Path | None = None,
    save_every: int = 500,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
) -> Dictionary:
    """Train a dictionary.

    Adam with linear warm-up, a constant rate and a decay; the gradient is clipped, decoder rows keep unit norm. Order
    and weights come from the seed, so that the same features and settings give the same dictionary on one machine.

    Args:
        source: a :class:`FeatureStore`, or features (N, d) in memory.
        settings: the preset ``default`` by default.
        checkpoint: folder for resuming; the same call goes on from it and ends with the same weights as without an
            interruption; removed at the end.
        save_every: steps between checkpoints; one is also written when the training is interrupted.
        progress: called with (steps done, steps in all).
        device: where the training runs.

    Returns:
        The dictionary with ``report["training"]``: steps, loss by epoch, seconds. Its quality is measured by
        :func:`whylens.dictionaries.measure_quality`.

    Raises:
        InputError: settings that cannot be used, features that do not vary, or a checkpoint of another training.
        FitError: when the loss is no longer finite.

    Cost: for each vector and epoch 2 K d multiply-adds, and as much again for the selected latents only. Memory: weights,
    their gradients and Adam's two moments (16 K d bytes each of encoder and decoder), and one batch.
    """
    features = FeatureTensor(source) if isinstance(source, Tensor) else source
    chosen = (settings or DictionarySettings()).resolved(features.width)
    started = time.perf_counter()
    batch = min(chosen.batch_size, features.rows)
    per_epoch = features.rows // batch
    total = max(1, round(chosen.epochs * per_epoch))
    mean, scale = _moments(features, chosen)
    key = content_hash(canonical_json(chosen.to_dict()), features.fingerprint)
    state = _State(Weights.initial(chosen, features.width))
    if checkpoint is not None and checkpoint.exists():
        state.load(checkpoint, key)
    state.to(torch.device(device))
    order = _batches(features.rows, batch, chosen.seed, state.step)
    centre = mean.to(device)
    saved = state.step
    whole = True
    try:
        while state.step < total:
            x = (features.read(next(order)).to(device) - centre) / scale
            if state.step == 0 and chosen.kind == "jumprelu":
                start_thresholds(state.weights, x, chosen.k or 1)
            dead = state.ages >= max(1.0, chosen.dead_after * features.rows)
            outcome = objective(state.weights, x, dead, chosen)
            if not math.isfinite(outcome.error):
                raise _diverged(state.step, chosen)
            whole = False
            state.update(outcome.loss, chosen, chosen.rate * rate_factor(state.step, total, per_epoch, chosen))
            state.record(outcome.error, outcome.fired, outcome.lowest, len(x), per_epoch)
            whole = True
            if checkpoint is not None and state.step - saved >= save_every and state.step < total:
                state.save(checkpoint, key)
                saved = state.step
            if progress is not None:
                progress(state.step, total)
    except FitError:
        raise
    except BaseException:
        # Ctrl-C included: what was learnt is kept, unless the interruption fell into the middle of an update.
        if checkpoint is not None and whole and state.step > saved:
            state.save(checkpoint, key)
        raise
    if not bool(((state.weights.decoder.norm(dim=1) - 1).abs() < 1e-3).all()):
        raise _diverged(state.step, chosen)
    dictionary = _finished(state, chosen, features, mean, scale)
    report = {
        "training": {
            "steps": total,
            "vectors": features.rows,
            "batch_size": batch,
            "errors": [round(e, 6) for e in state.errors],
            "seconds": round(state.seconds + time.perf_counter() - started, 2),
            "features": features.fingerprint,
        }
    }
    if checkpoint is not None and checkpoint.exists():
        shutil.rmtree(checkpoint)
    return dictionary.with_report(report)


def _diverged(step: int, settings: DictionarySettings) -> FitError:
    return FitError(f"The training diverged at step {step}. Choose a smaller rate than {settings.rate}.")


def rate_factor(step: int, total: int, per_epoch: int, settings: DictionarySettings) -> float:
    """Share of the learning rate at a step: linear warm-up, constant, then cosine to zero at ``total``."""
    warmup = min(round(settings.warmup * per_epoch), total)
    hold = min(max(round(settings.hold * per_epoch), warmup), total)
    if step < warmup:
        return (step + 1) / warmup
    if settings.decay == "none" or step < hold:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - hold) / (total - hold)))


def adam_step(tensor: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], step: int, rate: float) -> None:
    """One step of Adam (betas 0.9 and 0.999, epsilon 1e-8) in place, the ``step``-th from 1.

    torch's own optimisers import its compiler, which takes seconds, and keep their state where a checkpoint cannot
    easily name it.
    """
    first, second = moments
    first.lerp_(gradient, 0.1)
    second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    size = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
    tensor.addcdiv_(first, size, value=-rate / (1 - 0.9**step))


@dataclass
class _State:
    weights: Weights
    step: int = 0
    ages: Tensor = field(default_factory=lambda: torch.zeros(0))
    lowest: float = 0.0
    errors: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    seconds: float = 0.0
    moments: dict[str, Tensor] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    def to(self, device: torch.device) -> None:
        named = {n: t.detach().to(device).requires_grad_() for n, t in self.weights.named().items()}
        self.weights = Weights(**{n: named.get(n) for n in ("encoder", "decoder", "bias", "log_threshold")})  # type: ignore[arg-type]
        if not len(self.ages):
            self.ages = torch.zeros(len(self.weights.encoder))
        self.ages = self.ages.to(device)
        self.moments = {name: tensor.to(device) for name, tensor in self.moments.items()}

    def update(self, loss: Tensor, settings: DictionarySettings, rate: float) -> None:
        """One step of Adam on the clipped gradient; decoder rows keep unit norm."""
        named = self.weights.named()
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(t) if g is None else g for (name, t), g in zip(named.items(), found, strict=True)
        }
        with torch.no_grad():
            if settings.project:
                gradients["decoder"] = tangent_gradient(self.weights.decoder, gradients["decoder"])
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
            shrink = min(1.0, settings.clip / (norm + 1e-6))
            for name, tensor in named.items():
                # Thresholds move by factors, and slowly: their gradient sees only the few codes beside them.
                pace = rate * settings.threshold_rate if name == "log_threshold" else rate
                adam_step(tensor, gradients[name] * shrink, self._moment(name, tensor), self.step + 1, pace)
            self.weights.decoder.copy_(normalize(self.weights.decoder, dim=1))

    def _moment(self, name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
        for order in ("first", "second"):
            self.moments.setdefault(f"{order}.{name}", torch.zeros_like(tensor))
        return self.moments[f"first.{name}"], self.moments[f"second.{name}"]

    def record(self, error: float, fired: Tensor, lowest: float, vectors: int, per_epoch: int) -> None:
        self.step += 1
        self.ages = torch.where(fired > 0, 0.0, self.ages + vectors)
        self.lowest = lowest if self.step == 1 else _EMA * self.lowest + (1 - _EMA) * lowest
        self.running.append(error)
        if self.step % per_epoch == 0:
            self.errors.append(sum(self.running) / len(self.running))
            self.running = []

    def save(self, folder: Path, key: str) -> None:
        tensors = {"ages": self.ages, **self.moments}
        tensors |= {f"weights.{name}": tensor for name, tensor in self.weights.named().items()}
        meta = {"key": key, "step": self.step, "lowest": self.lowest, "errors": self.errors, "running": self.running}
        meta["seconds"] = self.seconds + time.perf_counter() - self.since
        with atomic_folder(folder, overwrite=True) as temporary:
            save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, temporary / "state.safetensors")
            (temporary / "state.json").write_text(json.dumps(meta), encoding="utf-8")

    def load(self, folder: Path, key: str) -> None:
        try:
            meta: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            # Copied, because a file's own alignment would make some sums round differently.
            tensors = {name: tensor.clone() for name, tensor in load_file(folder / "state.safetensors").items()}
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"{folder} holds no readable training checkpoint ({error}). Remove it.") from error
        if meta.get("key") != key:
            raise InputError(
                f"{folder} holds the unfinished training of another dictionary (features or settings differ). Remove it, or "
                "name another output."
            )
        named = {n.removeprefix("weights."): t for n, t in tensors.items() if n.startswith("weights.")}
        self.weights = Weights(**{n: named.get(n) for n in ("encoder", "decoder", "bias", "log_threshold")})  # type: ignore[arg-type]
        self.moments = {n: t for n, t in tensors.items() if n.startswith(("first.", "second."))}
        self.ages = tensors["ages"]
        self.step, self.lowest = int(meta["step"]), float(meta["lowest"])
        self.errors, self.running = list(meta["errors"]), list(meta["running"])
        self.seconds = float(meta["seconds"])


def _batches(rows: int, batch: int, seed: int, first: int) -> Iterator[Tensor]:
    """Row numbers of every batch from step ``first`` on, without end; each epoch sees a row at most once."""
    per_epoch = rows // batch
    epoch = first // per_epoch
    skip = first % per_epoch
    while True:
        generator = torch_generator(seed, "dictionary order", str(epoch))
        blocks = torch.randperm(-(-rows // _BLOCK), generator=generator)
        if rows <= _POOL:
            blocks = blocks.sort().values
        left = torch.zeros(0, dtype=torch.int64)
        given = 0
        for chosen in blocks.split(_POOL // _BLOCK):
            ids = (chosen[:, None] * _BLOCK + torch.arange(_BLOCK)).flatten()
            ids = ids[ids < rows]
            ids = torch.cat([left, ids[torch.randperm(len(ids), generator=generator)]])
            whole = len(ids) // batch
            for index in range(whole):
                if given >= skip:
                    yield ids[index * batch : (index + 1) * batch]
                given += 1
            left = ids[whole * batch :]
        epoch += 1
        skip = 0


def _moments(features: FeatureSource, settings: DictionarySettings) -> tuple[Tensor, float]:
    """The vector that is subtracted (d,), and the factor by which features are divided in training."""
    total = torch.zeros(features.width, dtype=torch.float64)
    square = 0.0
    for rows in torch.arange(features.rows).split(_BLOCK):
        x = features.read(rows).double()
        total += x.sum(0)
        square += float(x.square().sum())
    mean = total / features.rows
    spread = square / features.rows - (float(mean.square().sum()) if settings.centre else 0.0)
    if not math.isfinite(spread) or spread <= 0:
        raise InputError("The features do not vary (or are not finite), so there is nothing to take apart.")
    used = mean if settings.centre else torch.zeros_like(mean)
    return used.float(), math.sqrt(spread) if settings.normalise else 1.0


def _finished(
    state: _State, settings: DictionarySettings, features: FeatureSource, mean: Tensor, scale: float
) -> Dictionary:
    """The dictionary in the features' own units: codes, bias and thresholds carry the scale."""
    weights = {name: tensor.detach().cpu() for name, tensor in state.weights.named().items()}
    threshold = None
    if settings.kind == "jumprelu":
        threshold = weights["log_threshold"].exp() * scale
    elif settings.kind == "batchtopk":
        # The average lowest code of a batch that was kept. Codes at the threshold are 0, hence just below it.
        threshold = torch.full((len(weights["encoder"]),), state.lowest * scale * (1 - 1e-6))
    bias = weights.get("bias")
    return Dictionary(
        weights["encoder"],
        weights["decoder"],
        settings,
        bias=None if bias is None else bias * scale,
        mean=mean,
        threshold=threshold,
        origin=features.origin,
    )
