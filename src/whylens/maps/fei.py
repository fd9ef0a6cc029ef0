"""FEI: nested quantile masks that keep a score, by gradients that keep the network's own pathway (arXiv 2509.04588)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from whylens.classifiers.precision import PRECISIONS
from whylens.errors import InputError
from whylens.maps.base import MapMethod
from whylens.maps.clipping import MODES, SCOPES, Clipping
from whylens.maps.fei_fast import cut, joint_field
from whylens.maps.fei_game import GAMES, Game
from whylens.maps.fei_paper import sequential_masks
from whylens.maps.settings import check_choice, check_flag, check_whole
from whylens.maps.view import View
from whylens.registry import register

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
ITERATIONS = {"paper": 100, "fast": 19}
# Of a preset's procedure, for the protocol's id.
VERSIONS = {"paper": 1, "fast": 4}


@register("fei", kind="map")
class FEI(MapMethod):
    """Pixels that hold the logit when all others are replaced, found by optimisation without rerouting the network.

    Args:
        preset: ``"paper"``: the masks one after the other, with all settings of the paper's code; 500 passes.
            ``"fast"``: our joint solve of the same objective, with a blurred copy and the mean colour beside the
            random colours; 95 passes.
        game: ``"preservation"``: keeping a mask's pixels shall hold the score. ``"deletion"``: removing them shall lose
            it. ``"hybrid"``: both, at twice the passes.
        clipping: mode of backward clipping, see :func:`whylens.maps.clipping.clip`; ``"NONE"`` optimises freely.
        quantiles: shares of the pixels that the masks keep, rising, in (0, 1).
        iterations: optimisation steps, for each mask (paper) or for all at once (fast); by default 100 and 19.
        scope: which activations are clipped: ``"before-head"`` or ``"all"``, see :class:`Clipping`.
        attention: whether the attention of transformers is clipped too (our extension).
        precision: of the network, ``"float32"``, ``"bfloat16"`` or ``"auto"``; masks and sums stay in float32.

    The colours that replace pixels are drawn for each picture from its content and the seed. The
    result of ``"paper"`` is chaotic by its own definition, because the sign of its area term turns on a rounding: it is
    exact for single pictures only.

    Cost: ``len(quantiles) * iterations`` passes, twice that for the hybrid game, and one forward.

    Source: arXiv 2509.04588 and its public code for ``"paper"``; the joint solve is ours.
    """

    name: ClassVar[str] = "fei"
    deterministic: ClassVar[bool] = False

    def __init__(
        self,
        *,
        preset: str = "fast",
        game: str = "preservation",
        clipping: str = "IBM",
        quantiles: Sequence[float] = QUANTILES,
        iterations: int | None = None,
        scope: str = "before-head",
        attention: bool = True,
        precision: str = "float32",
    ) -> None:
        self.preset = preset
        self.game = game
        self.clipping = clipping
        self.quantiles = quantiles
        self.iterations = iterations
        self.scope = scope
        self.attention = attention
        self.precision = precision

    @property
    def protocol(self) -> str:
        """Id of the exact procedure."""
        spent = f"{len(self.quantiles)}x{self._iterations}"
        rest = self.changed("preset", "game", "clipping", "iterations")
        return f"fei/{self.preset}/{self.game}/{self.clipping}/{spent}{rest}@{VERSIONS[self.preset]}"

    @property
    def exact_at(self) -> int | None:
        """1 for the preset ``"paper"``."""
        return 1 if self.preset == "paper" else None

    @property
    def rows_per_picture(self) -> int:
        """Rows of the network's batch that one picture needs at once."""
        masks = 1 if self.preset == "paper" else len(self.quantiles)
        return masks * (2 if self.game == "hybrid" else 1)

    @property
    def _iterations(self) -> int:
        return ITERATIONS[self.preset] if self.iterations is None else self.iterations

    def validate(self) -> None:
        """Check the settings.

        Raises:
            InputError: for one that is out of range.
        """
        check_choice(self.name, "preset", self.preset, tuple(ITERATIONS))
        check_choice(self.name, "game", self.game, GAMES)
        check_choice(self.name, "clipping", self.clipping, MODES)
        check_choice(self.name, "scope", self.scope, SCOPES)
        check_choice(self.name, "precision", self.precision, PRECISIONS)
        check_flag(self.name, "attention", self.attention)
        if self.iterations is not None:
            check_whole(self.name, "iterations", self.iterations)
        shares = list(self.quantiles) if isinstance(self.quantiles, Sequence) else []
        numbers = all(isinstance(p, (int, float)) for p in shares)
        if not shares or not numbers or shares != sorted(set(shares)) or not all(0 < p < 1 for p in shares):
            raise InputError(
                f"fei: quantiles must be rising shares between 0 and 1, such as (0.1, 0.5); they are {self.quantiles!r}."
            )

    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W): the mean of the masks (paper), or the field that they are cut from (fast)."""
        if self.preset == "paper":
            return self.masks(view).mean(1)
        return joint_field(view, self._game(view), self.quantiles, self._iterations)

    def masks(self, view: View) -> Tensor:
        """The nested masks (B, Q, H, W) in [0, 1], smallest first."""
        game = self._game(view)
        if self.preset == "paper":
            return sequential_masks(view, game, self.quantiles, self._iterations)
        return cut(joint_field(view, game, self.quantiles, self._iterations)[:, None], self.quantiles)

    def _game(self, view: View) -> Game:
        clipping = Clipping(self.clipping, scope=self.scope, attention=self.attention)
        if self.clipping != "NONE":
            with torch.no_grad():
                # Run at once, since what is remembered must be whole: view.logits might split the batch.
                clipping.remember(lambda: view.run(view.images), len(view))
            view.count(0.5)
        return Game(self.game, clipping)
