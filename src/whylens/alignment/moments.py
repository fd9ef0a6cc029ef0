"""Streaming moments of paired features and embeddings: one pass, memory that does not depend on the number of pairs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from whylens.errors import FitError, InputError

# Rows whose product is one fp32 block: long enough that adding it up in fp64 is cheap, short enough that fp32 keeps
# six digits.
BLOCK = 4096
# Columns of one strip of a symmetric product; only strips on and below the diagonal are computed.
STRIP = 256


class Moments:
    """Count, sums and second moments of pairs (f, g), for exact least squares in either direction.

    Products of blocks are taken in fp32 and added up in fp64, about a shift near the mean, so that a large common
    offset costs no precision.

    Args:
        width: d, length of a feature vector.
        embedding_width: m, length of an embedding.
    """

    def __init__(self, width: int, embedding_width: int) -> None:
        if width < 1 or embedding_width < 1:
            raise InputError(f"Widths must be at least 1; they are {width} and {embedding_width}.")
        self.width = width
        self.embedding_width = embedding_width
        self._count = 0
        self._shift: tuple[Tensor, Tensor] | None = None
        self._sum_f = torch.zeros(width, dtype=torch.float64)
        self._sum_g = torch.zeros(embedding_width, dtype=torch.float64)
        self._ff = torch.zeros(width, width, dtype=torch.float64)
        self._fg = torch.zeros(width, embedding_width, dtype=torch.float64)
        self._gg = torch.zeros(embedding_width, embedding_width, dtype=torch.float64)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._waiting = 0

    @property
    def count(self) -> int:
        """Pairs seen so far."""
        return self._count + self._waiting

    def update(self, features: Tensor, embeddings: Tensor) -> None:
        """Add pairs.

        Args:
            features: (n, d).
            embeddings: (n, m), the same pictures in the same order.

        Raises:
            InputError: for other shapes.
            FitError: for NaN or infinite values; the message names the units.

        Cost: about n (d**2 / 2 + d m + m**2 / 2) multiply-adds.
        """
        if features.ndim != 2 or embeddings.ndim != 2 or len(features) != len(embeddings):
            raise InputError(
                f"Moments take (n, {self.width}) features and (n, {self.embedding_width}) embeddings of the same n "
                "pictures; "
                f"these are {tuple(features.shape)} and {tuple(embeddings.shape)}."
            )
        if features.shape[1] != self.width or embeddings.shape[1] != self.embedding_width:
            raise InputError(
                f"These moments are {self.width} x {self.embedding_width} wide; the pairs are {features.shape[1]} x "
                f"{embeddings.shape[1]} wide."
            )
        f, g = features.detach().float().cpu(), embeddings.detach().float().cpu()
        _refuse_non_finite(f, "feature")
        _refuse_non_finite(g, "embedding coordinate")
        for start in range(0, len(f), BLOCK):
            block = (f[start : start + BLOCK], g[start : start + BLOCK])
            # Copies, because the caller may reuse its buffers before the block is full.
            whole = len(block[0]) == BLOCK and not self._pending
            self._pending.append(block if whole else (block[0].clone(), block[1].clone()))
            self._waiting += len(block[0])
            if self._waiting >= BLOCK:
                self._flush()

    def merge(self, other: Moments) -> None:
        """Add the pairs of another accumulator, which is left as it is.

        Raises:
            InputError: when the widths differ.
        """
        if (other.width, other.embedding_width) != (self.width, self.embedding_width):
            raise InputError(
                f"Moments of {other.width} x {other.embedding_width} cannot be merged into moments of {self.width} x "
                f"{self.embedding_width}."
            )
        self._flush()
        other._flush()
        if other._shift is None:
            return
        if self._shift is None:
            self._shift = other._shift
        n = other._count
        df = other._shift[0].double() - self._shift[0].double()
        dg = other._shift[1].double() - self._shift[1].double()
        sf, sg = other._sum_f, other._sum_g
        self._ff += other._ff + torch.outer(sf, df) + torch.outer(df, sf) + n * torch.outer(df, df)
        self._fg += other._fg + torch.outer(sf, dg) + torch.outer(df, sg) + n * torch.outer(df, dg)
        self._gg += other._gg + torch.outer(sg, dg) + torch.outer(dg, sg) + n * torch.outer(dg, dg)
        self._sum_f += sf + n * df
        self._sum_g += sg + n * dg
        self._count += n

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean feature (d,) and mean embedding (m,), fp64.

        Raises:
            FitError: when no pair was seen.
        """
        shift_f, shift_g = self._shifts()
        return shift_f + self._sum_f / self._count, shift_g + self._sum_g / self._count

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Centred second moments divided by the count, fp64: features (d, d), cross (d, m), embeddings (m, m).

        Raises:
            FitError: when no pair was seen.
        """
        self._shifts()
        n = self._count
        f, g = self._sum_f / n, self._sum_g / n
        return self._ff / n - torch.outer(f, f), self._fg / n - torch.outer(f, g), self._gg / n - torch.outer(g, g)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as tensors; :meth:`from_state_dict` goes on from them."""
        self._flush()
        shift_f, shift_g = self._shift or (torch.zeros(self.width), torch.zeros(self.embedding_width))
        return {
            "count": torch.tensor(self._count),
            "shift_f": shift_f.clone(),
            "shift_g": shift_g.clone(),
            "sum_f": self._sum_f.clone(),
            "sum_g": self._sum_g.clone(),
            "ff": self._ff.clone(),
            "fg": self._fg.clone(),
            "gg": self._gg.clone(),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Moments:
        """Moments from the tensors of :meth:`state_dict`.

        Raises:
            InputError: when a tensor is missing or the shapes do not fit.
        """
        names = ("count", "shift_f", "shift_g", "sum_f", "sum_g", "ff", "fg", "gg")
        missing = [name for name in names if name not in state]
        if missing:
            raise InputError(f"The saved moments lack {', '.join(missing)}.")
        d, m = len(state["sum_f"]), len(state["sum_g"])
        shapes = {"shift_f": (d,), "shift_g": (m,), "ff": (d, d), "fg": (d, m), "gg": (m, m)}
        for name, shape in shapes.items():
            if tuple(state[name].shape) != shape:
                raise InputError(f"The saved moments are damaged: {name} is {tuple(state[name].shape)}, not {shape}.")
        moments = cls(d, m)
        moments._count = int(state["count"])
        if moments._count:
            moments._shift = (state["shift_f"].float().clone(), state["shift_g"].float().clone())
        moments._sum_f, moments._sum_g = state["sum_f"].double().clone(), state["sum_g"].double().clone()
        moments._ff, moments._fg, moments._gg = (state[name].double().clone() for name in ("ff", "fg", "gg"))
        return moments

    def _shifts(self) -> tuple[Tensor, Tensor]:
        self._flush()
        if self._shift is None:
            raise FitError("No pictures were seen, so there is nothing to align.")
        return self._shift[0].double(), self._shift[1].double()

    def _flush(self) -> None:
        if not self._waiting:
            return
        pairs, self._pending, self._waiting = self._pending, [], 0
        f = pairs[0][0] if len(pairs) == 1 else torch.cat([pair[0] for pair in pairs])
        g = pairs[0][1] if len(pairs) == 1 else torch.cat([pair[1] for pair in pairs])
        if self._shift is None:
            self._shift = (f.mean(0, dtype=torch.float64).float(), g.mean(0, dtype=torch.float64).float())
        f, g = f - self._shift[0], g - self._shift[1]
        self._count += len(f)
        self._sum_f += f.sum(0, dtype=torch.float64)
        self._sum_g += g.sum(0, dtype=torch.float64)
        _add_gram(self._ff, f)
        self._fg += f.T @ g
        _add_gram(self._gg, g)


def _add_gram(total: Tensor, x: Tensor) -> None:
    """``total += x.T @ x``, using that it is symmetric."""
    for start in range(0, x.shape[1], STRIP):
        stop = start + STRIP
        product = x[:, start:].T @ x[:, start:stop]
        total[start:, start:stop] += product
        total[start:stop, stop:] += product[STRIP:].T


def _refuse_non_finite(values: Tensor, what: str) -> None:
    # The sum is finite for nearly all sound batches and far cheaper than a test of every element.
    if bool(torch.isfinite(values.sum())):
        return
    bad = ~torch.isfinite(values)
    if not bool(bad.any()):
        return
    units = bad.any(0).nonzero().flatten().tolist()
    rows = bad.any(1).nonzero().flatten().tolist()
    shown = ", ".join(map(str, units[:5])) + (", ..." if len(units) > 5 else "")
    raise FitError(
        f"{len(units)} of {values.shape[1]} {what}s are NaN or infinite (number {shown}) in {len(rows)} of "
        f"{len(values)} "
        f"pictures of a batch (first: row {rows[0]}). A network in half precision or with damaged weights does this; "
        "run it "
        "in fp32 and check its weights."
    )
