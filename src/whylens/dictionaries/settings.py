"""What a dictionary is and how it is trained: one frozen record, and the named presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from whylens.errors import InputError, unknown_name

KINDS = ("topk", "batchtopk", "jumprelu")
DECAYS = ("none", "cosine")
STARTS = ("transposed", "independent")
ERRORS = ("sum", "mean")


@dataclass(frozen=True)
class DictionarySettings:
    """Settings of a dictionary and of its training. Lengths in epochs may be fractions.

    Attributes:
        kind: ``"topk"``: the k largest codes of every vector. ``"batchtopk"``: the k * B largest of a batch of B while
            training, a threshold afterwards. ``"jumprelu"``: a learnt threshold for every latent, pulled towards an
            average of k active latents.
        latents: number of latents K; None: ``expansion`` times the feature width.
        expansion: see ``latents``.
        k: active latents of a vector (an average but for ``"topk"``); None: a tenth of the latents.
        bias: learn a bias of the pre-codes. Without bias and centring a TopK dictionary is homogeneous:
            codes(s f) = s codes(f) for s > 0.
        centre: subtract the mean feature before encoding and add it after decoding.
        normalise: scale features to a mean squared norm of 1 while training (undone in the finished weights).
        epochs: passes over the stored vectors.
        batch_size: vectors of one step; at most as many as there are.
        rate: learning rate of Adam.
        warmup: epochs of linear warm-up.
        hold: epoch until which the rate stays; then it decays.
        decay: ``"cosine"`` to zero at the last step, or ``"none"``.
        clip: largest gradient norm.
        project: take the part along each decoder row out of its gradient (the rows are set to unit norm either way).
        error: squared error summed or averaged over the width; the mean over vectors is taken either way.
        start: ``"transposed"``: the encoder starts as the decoder; ``"independent"``: both random.
        aux: weight of the auxiliary loss that revives dead latents: they reconstruct the residual, whose squared error
            is divided by the residual's variance; 0 turns it off.
        aux_latents: at most so many dead latents take part for one vector.
        dead_after: epochs without firing after which a latent counts as dead in training.
        bandwidth: JumpReLU: width of the kernel that gives thresholds a gradient, relative to the threshold.
        sparsity_weight: JumpReLU: weight of (active latents / k - 1)**2.
        threshold_rate: JumpReLU: learning rate of the thresholds' logarithms, relative to ``rate``.
        seed: of the initial weights and the order of vectors.
        preset: the preset that these settings started from.
    """

    kind: str = "topk"
    latents: int | None = None
    expansion: float = 8
    k: int | None = 32
    bias: bool = True
    centre: bool = True
    normalise: bool = True
    epochs: float = 20
    batch_size: int = 256
    rate: float = 2e-3
    warmup: float = 0.5
    hold: float = 10
    decay: str = "cosine"
    clip: float = 1.0
    project: bool = True
    error: str = "sum"
    start: str = "transposed"
    aux: float = 0.25
    aux_latents: int = 256
    dead_after: float = 2.0
    bandwidth: float = 0.5
    sparsity_weight: float = 0.3
    threshold_rate: float = 10.0
    seed: int = 0
    preset: str = "default"

    def validate(self) -> None:
        """Check every setting.

        Raises:
            InputError: for the first that cannot be used: its name, value and what is accepted.
        """
        for name, accepted in (("kind", KINDS), ("decay", DECAYS), ("start", STARTS), ("error", ERRORS)):
            if getattr(self, name) not in accepted:
                raise unknown_name(name, getattr(self, name), accepted)
        for name in ("epochs", "batch_size", "rate", "clip", "bandwidth", "expansion", "threshold_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be over 0; it is {getattr(self, name)}.")
        for name in ("warmup", "hold", "aux", "dead_after", "sparsity_weight"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative; it is {getattr(self, name)}.")
        for name in ("latents", "k", "aux_latents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1; it is {value}.")
        if self.latents is not None and self.k is not None and self.k > self.latents:
            raise InputError(f"k must be at most the number of latents, {self.latents}; it is {self.k}.")

    def resolved(self, width: int) -> DictionarySettings:
        """The same with ``latents`` and ``k`` as numbers, for features of ``width`` units.

        Raises:
            InputError: as :meth:`validate`.
        """
        self.validate()
        latents = self.latents if self.latents is not None else max(2, round(self.expansion * width))
        k = self.k if self.k is not None else max(1, latents // 10)
        made = dataclasses.replace(self, latents=latents, k=k)
        made.validate()
        return made

    def to_dict(self) -> dict[str, Any]:
        """As a plain mapping."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DictionarySettings:
        """From :meth:`to_dict`; settings that this version does not know are refused.

        Raises:
            InputError: for an unknown setting.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise unknown_name("dictionary setting", name, known)
        return cls(**values)


PRESETS = {
    # Ours: sparse, centred, with revival of dead latents.
    "default": DictionarySettings(),
    # TEXTER's official training (specification, section 2): k is a tenth of the latents, constant rate, nothing revived.
    "paper": DictionarySettings(
        k=None,
        centre=False,
        normalise=False,
        epochs=10,
        batch_size=1024,
        rate=5e-4,
        warmup=0,
        hold=0,
        decay="none",
        project=False,
        error="mean",
        start="independent",
        aux=0.0,
        preset="paper",
    ),
    # FaCT's (specification, section 2): bias-free and homogeneous. 32,786 is the published batch size.
    "fact": DictionarySettings(
        k=16,
        bias=False,
        centre=False,
        epochs=16,
        batch_size=32786,
        rate=1e-3,
        warmup=1,
        hold=2,
        aux=1 / 32,
        dead_after=0.5,
        preset="fact",
    ),
}


def dictionary_preset(name: str = "default", **changes: Any) -> DictionarySettings:
    """The settings of a preset, some changed: ``dictionary_preset("fact", latents=4096)``.

    Args:
        name: ``"default"``, ``"paper"`` (TEXTER's) or ``"fact"`` (FaCT's).
        changes: settings that differ from the preset.

    Raises:
        InputError: for an unknown preset or setting, or a value that cannot be used.
    """
    if name not in PRESETS:
        raise unknown_name("dictionary preset", name, PRESETS)
    settings = DictionarySettings.from_dict({**PRESETS[name].to_dict(), **changes})
    settings.validate()
    return settings
