"""TEXTER: decision-critical units are found, carried into the image-text space, and matched with phrases.

Units are the latents of the lens's dictionary, or the feature units where it has none. Four ways carry them over; see
:mod:`whylens.words.translation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whylens.errors import InputError, unknown_name
from whylens.registry import register
from whylens.types import DecidingUnit
from whylens.words.base import Scene, Scored, WordsMethod, positive_only, whole_bank
from whylens.words.control import MINIMUM_DRAWS, MINIMUM_PRESENCE_Z, Control, NullHeads, control_notes, null_heads
from whylens.words.deciding import Chosen, Deciding, find_units, name_units
from whylens.words.maco import PRESETS, MacoSettings, maco_settings
from whylens.words.maco_cache import default_folder
from whylens.words.selection import strongest
from whylens.words.translation import MODES, Translator

# Every draw selects its own units and ranks the bank anew, so fewer are drawn than for scores that are linear in the
# head.
TEXTER_DRAWS = 100


@register("texter", kind="words")
class Texter(WordsMethod):
    """TEXTER: the units that decide, translated into phrases (arXiv 2512.07245).

    Attributions are integrated gradients from the point where every unit is 0: in closed form for an affine head,
    ``z_j <d_j, w_c>`` for a latent (``w_c - w_c'`` with a contrast), else captum's with 100 Gauss-Legendre steps. Unlike
    the official code, which ranks by size and so takes suppressing units for evidence, units are signed, and the other
    sign gets phrases of its own. Where the paper optimises a picture for the units (``maco``), the other modes are the
    specification's fast replacements (ours). On planted scenes ``exemplar`` is far nearer to the true causes than
    ``decode`` (docs/planted.md).

    Args:
        mode: ``"decode"``: cosine of W sum_U (z_j - mean_j) d_j with centred phrases; ``"exemplar"``: of
            sum_U IG_j (E_j - u_mean), E_j the mean embedding of the unit's 20 strongest reference pictures; ``"maco"``: of
            a picture that is optimised to activate U; ``"maco-cached"``: as exemplar, with E_j from a picture that is
            optimised for unit j alone.
        dictionary: True: units are latents of the lens's dictionary; False: feature units; None: latents where the lens
            has a dictionary of these features.
        units: number of units, the k of the paper.
        absolute: choose units by the size of their attribution, whatever its sign, as the official code does; there is
            then no suppressing list.
        suppressing: also translate the suppressing units; None: yes, except in the mode ``"maco"``, where that is a second
            optimisation.
        maco: how pictures are optimised: ``"fast"``, ``"paper"``, or :class:`whylens.words.MacoSettings`.
        cache: keep optimised pictures on disk (in ``$WHYLENS_CACHE/maco`` or the user's cache folder).
        k: phrases shown on either side, None for the whole bank.
        control: run the random-head control (affine heads, modes without optimisation); a phrase is compared with those
            that are present.
        draws: random heads.

    Raises:
        InputError: where a dictionary is asked for and the lens has none of these features.
        ModelError: in the modes with pictures, for a set of units that no picture makes respond.
    """

    name = "texter"

    def __init__(
        self,
        *,
        mode: str = "exemplar",
        dictionary: bool | None = None,
        units: int = 6,
        absolute: bool = False,
        suppressing: bool | None = None,
        maco: str | MacoSettings | Mapping[str, Any] = "fast",
        cache: bool = True,
        k: int | None = 8,
        control: bool = True,
        draws: int = TEXTER_DRAWS,
    ) -> None:
        self.mode = mode
        self.dictionary = dictionary
        self.units = units
        self.absolute = absolute
        self.suppressing = suppressing
        self.maco = maco
        self.cache = cache
        self.k = k
        self.control = control
        self.draws = draws

    def validate(self) -> None:
        """Check the settings; raises InputError for one that cannot be used."""
        super().validate()
        if self.mode not in MODES:
            raise unknown_name("mode", self.mode, MODES)
        if self.units < 1:
            raise InputError(f"texter: units must be at least 1; it is {self.units}.")
        if self.draws < MINIMUM_DRAWS:
            raise InputError(
                f"texter: draws must be at least {MINIMUM_DRAWS} for a p-value of 0.05; it is {self.draws}."
            )
        maco_settings(self.maco)

    def score(self, scene: Scene) -> Scored:
        """Scores (B, T) of the translated supporting units, and of the suppressing ones."""
        found = find_units(scene, use=self.dictionary, exemplars=self.mode == "exemplar")
        translator = Translator(scene, found, self.mode, self._maco(), self._folder(), units=self.units)
        supporting = found.strongest(found.values, self.units, absolute=self.absolute)
        against = None if self.absolute else found.strongest(-found.values, self.units)
        scores = translator.scores(supporting)
        suppressing_scores = None
        if against is not None and self._suppresses():
            suppressing_scores = -translator.scores(against)
        control, notes = self._controlled(scene, found, translator)
        if self.k is None:
            shown, suppressing = whole_bank(scores)
        else:
            shown = positive_only(strongest(scores, self.k), scores)
            suppressing = shown[:, :0]
            if suppressing_scores is not None:
                suppressing = positive_only(strongest(-suppressing_scores, self.k), -suppressing_scores)
        return Scored(
            protocol=self._protocol(found),
            scores=scores,
            phrases=shown,
            suppressing=suppressing,
            control=control,
            signed=False,
            suppressing_scores=suppressing_scores,
            suppressing_control=control if suppressing_scores is not None else None,
            notes=(*found.notes, *translator.notes, *notes),
            row_notes=found.shares(supporting),
            passes=1.0 + translator.passes / max(1, len(scene.pooled)),
            units=self._units(scene, found, translator, (supporting, against), (shown, suppressing)),
        )

    def _units(
        self,
        scene: Scene,
        found: Deciding,
        translator: Translator,
        chosen: tuple[Chosen, Chosen | None],
        phrases: tuple[Tensor, Tensor],
    ) -> list[tuple[DecidingUnit, ...]]:
        """The deciding units with their parts of the scores of the phrases shown (of a whole bank they are left out)."""
        lists, said = [], []
        for sign, units, shown in zip((1, -1), chosen, phrases, strict=True):
            if units is None:
                continue
            parts = None if self.k is None or not shown.shape[1] else translator.parts(units, shown)
            lists.append(units)
            said.append(None if parts is None else (shown, sign * parts))
        return name_units(scene, found, lists, said)

    def _protocol(self, found: Deciding) -> str:
        parts = [f"texter/{self.mode}"]
        if found.dictionary is not None:
            parts.append("latents")
        parts.append(f"units={self.units}")
        if self.absolute:
            parts.append("absolute")
        if self.mode.startswith("maco"):
            chosen = self._maco()
            parts.append(chosen.preset if chosen == PRESETS.get(chosen.preset) else f"{chosen.preset}-changed")
        return "/".join(parts) + "@1"

    def _suppresses(self) -> bool:
        return self.mode != "maco" if self.suppressing is None else self.suppressing

    def _maco(self) -> MacoSettings:
        return maco_settings(self.maco)

    def _folder(self) -> Path | None:
        return default_folder() if self.cache else None

    def _controlled(
        self, scene: Scene, found: Deciding, translator: Translator
    ) -> tuple[Control | None, tuple[str, ...]]:
        if not self.control:
            return None, ()
        if not translator.shared:
            return None, (
                "No random-head control was run: random heads choose other units, and each would need a picture of its own.",
            )
        heads = null_heads(
            scene.classifier, scene.tables, scene.features, scene.logits, scene.question, scene.seed, self.draws
        )
        if heads is None or heads.rows.ndim != 2:
            return None, ("The head is not affine, so no random-head control was run for this method.",)
        return self._random_heads(scene, heads, found, translator), control_notes(scene.logits.shape[1])

    def _random_heads(self, scene: Scene, heads: NullHeads, found: Deciding, translator: Translator) -> Control:
        """Best cosine of any present phrase under random heads, for supporting and (negated) suppressing units."""
        present = (scene.presence_z >= MINIMUM_PRESENCE_Z) & (scene.tables.carried > 0)
        key: tuple[Any, ...] = ("texter heads", id(heads.rows), scene.seed, self.draws)
        if key not in scene.tables.cache:
            scene.tables.cache[key] = heads.coefficients @ heads.rows
        base = scene.tables.cache[key]
        maxima = torch.zeros_like(heads.shift)
        minima = torch.zeros_like(heads.shift)
        for i in range(len(maxima)):
            family = present[i].nonzero().flatten()
            if not len(family):
                continue
            gradients = heads.length[i] * base + heads.shift[i, :, None] * heads.regression[i]
            gradients = gradients + heads.total[i] * heads.mean
            # Only active units have an attribution, under whatever head.
            active, random = found.under(i, gradients)
            if self.absolute:
                maxima[i] = translator.best(i, active, random, family, absolute=True)
            else:
                both = translator.best(i, active, torch.cat([random, -random]), family, absolute=False)
                maxima[i], minima[i] = both[: len(random)], -both[len(random) :]
        return Control(maxima, minima)
