"""What a map method is given: the pictures, the question asked of each, and a counter of what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whylens.classifiers.precision import arithmetic
from whylens.errors import InputError, ModelError
from whylens.maps.batching import in_batches
from whylens.randomness import torch_generator

if TYPE_CHECKING:
    from whylens.classifiers import Classifier

FORWARD = 0.5
"""Passes that a forward without a backward counts: towards the picture a backward costs about as much as a forward."""


@dataclass(eq=False)
class Ledger:
    """What was spent and said while maps were made: passes of each picture, and notes for the reader."""

    passes: list[float]
    notes: list[list[str]]

    @classmethod
    def empty(cls, count: int) -> Ledger:
        """A ledger of ``count`` pictures."""
        return cls([0.0] * count, [[] for _ in range(count)])


@dataclass(frozen=True, eq=False)
class View:
    """B pictures with the question that is asked of each.

    The network is in evaluation mode, its parameters are frozen and gradients are enabled while a method holds a view.

    Attributes:
        classifier: the classifier; of a data-parallel network, the network inside.
        images: (B, C, H, W) float32 in [0, 1] on the classifier's device, not attached to any graph.
        targets: (B,) explained classes; contrasts: (B,) classes they are explained against, or None.
        hashes: content hashes of the pictures.
        seed: of the random draws.
        ledger: what is spent.
        precision: of the network, see :func:`~whylens.classifiers.precision.arithmetic`.
    """

    classifier: Classifier
    images: Tensor
    targets: Tensor
    contrasts: Tensor | None
    hashes: tuple[str, ...]
    seed: int
    ledger: Ledger = field(repr=False)
    precision: str = "float32"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """Where the pictures are."""
        return self.images.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.images.shape[-2], self.images.shape[-1]

    def score(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """The explained quantity: the target's logit, less the contrast's where there is one.

        Args:
            x: (n, C, H, W) in [0, 1], variants of the pictures.
            rows: (n,) which picture each one belongs to; by default n is a multiple of B, and the n / B variants of
                one picture follow each other.

        Returns:
            (n,) float32.

        Cost: a pass for each row where gradients are enabled, half a pass otherwise; then rows are also run in
        batches that fit into memory.
        """
        owners = self._owners(x, rows)
        return self.pick(self.logits(x, owners), owners)

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """All logits (n, C) in float32; arguments and cost as in :meth:`score`."""
        owners = self._owners(x, rows)
        graph = torch.is_grad_enabled()
        self.count(1.0 if graph else FORWARD, owners)
        if graph:
            return self.run(x)
        parts = in_batches(
            lambda start, stop: self.run(x[start:stop]),
            len(x),
            module=self.classifier.module,
            key="forward",
            pixels=x.shape[-1] * x.shape[-2],
            device=self.device,
        )
        return torch.cat([part for _, _, part in parts])

    def run(self, x: Tensor) -> Tensor:
        """All logits (n, C) in float32, in one pass that is not counted, with a graph where gradients are enabled."""
        with arithmetic(self.precision, self.device):
            return self.classifier.logits(x).float()

    def pick(self, logits: Tensor, rows: Tensor | None = None) -> Tensor:
        """The explained quantity (n,) float32 of logits (n, C) that are at hand; ``rows`` as in :meth:`score`."""
        owners = self._owners(logits, rows)
        values = logits.float()
        chosen = values.gather(1, self.targets[owners, None])[:, 0]
        if self.contrasts is None:
            return chosen
        return chosen - values.gather(1, self.contrasts[owners, None])[:, 0]

    def gradient(self, score: Tensor, inputs: Tensor, *, what: str = "the picture", keep_graph: bool = False) -> Tensor:
        """The gradient of the summed score by ``inputs``, checked.

        Args:
            score: any shape, with a graph.
            inputs: what it is taken by; rows first.
            what: the name of the inputs for error messages, such as ``"the layer 'features.3'"``.
            keep_graph: whether the graph is needed again.

        Raises:
            ModelError: when the score does not depend on the inputs, or the gradient is NaN or infinite.
        """
        return self.gradients(score, [inputs], what=what, keep_graph=keep_graph)[0]

    def gradients(
        self, score: Tensor, inputs: Sequence[Tensor], *, what: str, keep_graph: bool = False
    ) -> tuple[Tensor, ...]:
        """The same by several inputs, in one backward."""
        found: tuple[Tensor | None, ...] = (None,)
        if score.requires_grad:
            found = torch.autograd.grad(score.sum(), inputs, retain_graph=keep_graph, allow_unused=True)
        slopes = tuple(slope for slope in found if slope is not None)
        if len(slopes) < len(inputs):
            raise ModelError(
                f"The score does not depend on {what}, so no map can be made from it. Choose another layer, or a "
                "network that does not detach or round what it computes."
            )
        bad = torch.stack([~torch.isfinite(slope).flatten(1).all(1) for slope in slopes]).any(0)
        if bool(bad.any()):
            raise ModelError(
                f"The gradient by {what} is NaN or infinite for {int(bad.sum())} of {len(bad)} pictures. Lower "
                "precision or a function with an infinite slope (a root at zero, a division) often causes this."
            )
        return slopes

    def count(self, passes: float, rows: Tensor | None = None) -> None:
        """Add passes of the network that were spent outside of :meth:`score` and :meth:`logits`.

        Args:
            passes: for each row; 1 is a forward and backward of one picture, 0.5 a forward alone.
            rows: (n,) the pictures' indices; every picture once by default.
        """
        for index in range(len(self)) if rows is None else rows.tolist():
            self.ledger.passes[index] += passes

    def note(self, index: int, sentence: str) -> None:
        """Add a sentence for the reader of picture ``index``'s map."""
        if sentence not in self.ledger.notes[index]:
            self.ledger.notes[index].append(sentence)

    def generator(self, index: int, *names: str) -> torch.Generator:
        """A CPU generator for (seed, content of picture ``index``, names): the same whatever the batch."""
        return torch_generator(self.seed, self.hashes[index], *names)

    def draw(self, function: str, shape: Sequence[int], *names: str) -> Tensor:
        """Random numbers (B, *shape) float32 on the pictures' device, drawn for each picture by itself.

        Args:
            function: ``"rand"`` for [0, 1), ``"randn"`` for a standard normal distribution.
            shape: of one picture's numbers.
            names: what they are for, so that two uses do not draw the same.
        """
        make = {"rand": torch.rand, "randn": torch.randn}[function]
        drawn = [make(tuple(shape), generator=self.generator(i, *names)) for i in range(len(self))]
        return torch.stack(drawn).to(self.device)

    def select(self, start: int, stop: int) -> View:
        """The view of some of the pictures, with an empty ledger."""
        return replace(
            self,
            images=self.images[start:stop],
            targets=self.targets[start:stop],
            contrasts=None if self.contrasts is None else self.contrasts[start:stop],
            hashes=self.hashes[start:stop],
            ledger=Ledger.empty(stop - start),
        )

    def _owners(self, x: Tensor, rows: Tensor | None) -> Tensor:
        if rows is not None:
            return rows.to(self.device)
        count = len(self)
        if not count or len(x) % count:
            raise InputError(f"{len(x)} rows cannot be shared out among {count} pictures; give their owners (rows=).")
        return torch.arange(count, device=self.device).repeat_interleave(len(x) // count)
