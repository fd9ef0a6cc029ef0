"""What FEI optimises: the score of a picture whose unimportant, or important, pixels are replaced by a colour."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whylens.maps.clipping import Clipping
from whylens.maps.view import View

GAMES = ("preservation", "deletion", "hybrid")


@dataclass(frozen=True, eq=False)
class Game:
    """A game and the clipping of the gradients that it sends through the network.

    Attributes:
        name: ``"preservation"``: what the mask keeps shall hold the score. ``"deletion"``: what remains without the
            mask shall lose it. ``"hybrid"``: both.
        clipping: has seen the original pictures.
    """

    name: str
    clipping: Clipping

    @property
    def rows(self) -> int:
        """Rows of the network's batch for one mask of one picture."""
        return 2 if self.name == "hybrid" else 1

    def loss(self, view: View, mask: Tensor, colour: Tensor) -> Tensor:
        """To be made small; (n,) for n masks.

        Args:
            view: B pictures.
            mask: (n, 1, H, W), n a multiple of B, masks of one picture behind each other.
            colour: (n, C, 1, 1) or (n, C, H, W), what replaces pixels.

        Cost: n passes, twice that for the hybrid game.
        """
        pictures = view.images
        if len(mask) != len(pictures):
            pictures = pictures.repeat_interleave(len(mask) // len(pictures), 0)
        parts = []
        if self.name != "deletion":
            parts.append(colour + mask * (pictures - colour))
        if self.name != "preservation":
            parts.append(pictures + mask * (colour - pictures))
        # The rows of one picture stay behind each other, as scores and clipping expect them.
        x = parts[0] if len(parts) == 1 else torch.stack(parts, 1).flatten(0, 1)
        with self.clipping.clipped():
            score = view.score(x)
        if self.name == "hybrid":
            kept, removed = score.unflatten(0, (-1, 2)).unbind(1)
            return removed - kept
        return score if self.name == "deletion" else -score
