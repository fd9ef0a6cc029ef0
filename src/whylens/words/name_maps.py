"""Maps from text embeddings to the rows of a head, learnt from the classifier's own class names; no picture is needed.

A linear head has one row w_c for each class, and each class has a name. A map f from the embedding of a name to its row
carries any other phrase into the same space (Sammani and Deligiannis, arXiv 2503.10981, who train a small MLP). Here
the map is ridge regression in closed form by default, because it can be taken apart: its error on a name that was left
out, and the map that never saw a class, follow without another fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whylens.errors import InputError
from whylens.randomness import numpy_generator, torch_generator

MINIMUM_NAMES = 5
FOLDS = 5
# Relative to the mean squared singular value: from unpenalised to the mean row for every phrase.
RIDGES = tuple(10.0 ** (exponent / 2) for exponent in range(-20, 7))
_STEPS = 300


@dataclass(frozen=True, eq=False)
class RidgeNameMap:
    """Affine map ``f(e) = mean_w + B (e - mean_e)``, fitted on n names; fp64 on the CPU.

    Attributes:
        classes: (n,) class indices of the names.
        left, singular, right: thin singular value decomposition of the centred embeddings.
        targets: (n, d) centred rows; mean_embedding: (m,); mean_row: (d,).
        ridge: strength, the one of least leave-one-out error; r2: share of the rows' variance that maps fitted without
            them predict (at most 1).
    """

    classes: Tensor
    left: Tensor
    singular: Tensor
    right: Tensor
    targets: Tensor
    mean_embedding: Tensor
    mean_row: Tensor
    ridge: float
    r2: float

    @classmethod
    def fit(cls, embeddings: Tensor, rows: Tensor, classes: Tensor, ridges: Sequence[float] = RIDGES) -> RidgeNameMap:
        """Fit on embeddings (n, m) and rows (n, d) of classes (n,).

        Raises:
            InputError: for fewer than 5 names, or names whose embeddings or rows are all alike.

        Cost: one singular value decomposition of (n, m).
        """
        check_names(embeddings, rows)
        e, w = embeddings.detach().double().cpu(), rows.detach().double().cpu()
        mean_e, mean_w = e.mean(0), w.mean(0)
        left, singular, right = torch.linalg.svd(e - mean_e, full_matrices=False)
        # What centring makes zero is noise that no strength may divide by.
        keep = singular > singular[0] * 1e-9
        left, singular, right = left[:, keep], singular[keep], right[keep]
        targets = w - mean_w
        total = float(_without_own_mean(targets).square().sum())
        scale = float(singular.square().mean())
        best = (float("inf"), 0.0)
        for strength in ridges:
            shrink = singular.square() / (singular.square() + strength * scale)
            leverage = (left.square() * shrink).sum(1) + 1 / len(e)
            residual = targets - left @ (shrink[:, None] * (left.T @ targets))
            if float(leverage.max()) < 1 - 1e-9:
                error = float((residual / (1 - leverage)[:, None]).square().sum())
                best = min(best, (error, strength))
        if best[0] == float("inf"):
            raise InputError(
                "The class-name embeddings determine every row, so that no map can be judged by its error."
            )
        r2 = 1 - best[0] / total
        return cls(classes.cpu(), left, singular, right, targets, mean_e, mean_w, best[1] * scale, r2)

    def linear(self, without: Sequence[int] = ()) -> Tensor:
        """B (d, m) of the map that was fitted without these classes, exactly, at the same strength.

        Raises:
            InputError: when fewer than 3 names remain.
        """
        shrink = self.singular / (self.singular.square() + self.ridge)
        whole = (self.targets.T @ (self.left * shrink)) @ self.right
        out = [i for i, c in enumerate(self.classes.tolist()) if c in set(without)]
        if not out:
            return whole
        if len(self.classes) - len(out) < 3:
            raise InputError(
                f"Without the classes asked about only {len(self.classes) - len(out)} names remain; 3 are needed."
            )
        # Leaving rows out of a least-squares fit: B - R' (I - H)^-1 G over the rows left out.
        gain = (self.left[out] * shrink) @ self.right
        damped = self.left * (self.singular.square() / (self.singular.square() + self.ridge))
        hat = damped[out] @ self.left[out].T + 1 / len(self.classes)
        residual = self.targets[out] - damped[out] @ (self.left.T @ self.targets)
        solved = torch.linalg.solve(torch.eye(len(out), dtype=torch.float64) - hat, residual)
        return whole - solved.T @ gain


@dataclass(frozen=True, eq=False)
class MlpNameMap:
    """A perceptron with one hidden layer, one for each set of folds that it must not have seen.

    Attributes:
        classes, embeddings, rows: of the names, standardised inside.
        hidden: units of the hidden layer; seed: of its start and of the folds.
        r2: share of the rows' variance that maps fitted without their fold predict.
    """

    classes: Tensor
    embeddings: Tensor
    rows: Tensor
    hidden: int
    seed: int
    r2: float
    _trained: dict[frozenset[int], torch.nn.Module]

    @classmethod
    def fit(cls, embeddings: Tensor, rows: Tensor, classes: Tensor, *, hidden: int, seed: int) -> MlpNameMap:
        """Fit on embeddings (n, m) and rows (n, d) of classes (n,).

        Raises:
            InputError: for fewer than 5 names, or names whose embeddings or rows are all alike.

        Cost: 5 trainings of 300 steps over all names.
        """
        check_names(embeddings, rows)
        e, w = embeddings.detach().float().cpu(), rows.detach().float().cpu()
        made = cls(classes.cpu(), e, w, hidden, seed, float("nan"), {})
        missed = torch.cat(
            [w[made._folds() == k] - made._predict(e[made._folds() == k], frozenset({k})) for k in range(FOLDS)]
        )
        total = float(_without_own_mean((w - w.mean(0)).double()).square().sum())
        return cls(classes.cpu(), e, w, hidden, seed, 1 - float(missed.double().square().sum()) / total, made._trained)

    def predict(self, embeddings: Tensor, without: Sequence[int] = ()) -> Tensor:
        """f(e) (T, d), fp32, of the map that saw no fold with one of these classes."""
        folds = self._folds()
        own = frozenset(int(folds[i]) for i, c in enumerate(self.classes.tolist()) if c in set(without))
        return self._predict(embeddings.detach().float().cpu(), own)

    def _folds(self) -> Tensor:
        order = numpy_generator(self.seed, "name map folds").permutation(len(self.classes))
        return torch.from_numpy(order) % FOLDS

    def _predict(self, embeddings: Tensor, without: frozenset[int]) -> Tensor:
        seen = torch.tensor([int(k) not in without for k in self._folds()])
        e, w = self.embeddings[seen], self.rows[seen]
        mean_e, mean_w = e.mean(0), w.mean(0)
        # One scale for all coordinates: single ones may hardly vary.
        scale_e, scale_w = (e - mean_e).square().mean().sqrt(), (w - mean_w).square().mean().sqrt()
        if without not in self._trained:
            self._trained[without] = _train((e - mean_e) / scale_e, (w - mean_w) / scale_w, self.hidden, self.seed)
        with torch.no_grad():
            out: Tensor = self._trained[without]((embeddings - mean_e) / scale_e)
        return out * scale_w + mean_w


def check_names(embeddings: Tensor, rows: Tensor) -> None:
    """Refuse what no map can be learnt from.

    Raises:
        InputError: for fewer than 5 names, or names whose embeddings or rows are all alike.
    """
    if len(embeddings) < MINIMUM_NAMES:
        raise InputError(
            f"A map from class names to rows of the head needs at least {MINIMUM_NAMES} names with embeddings; there are "
            f"{len(embeddings)}."
        )
    for what, values in (("embeddings of the class names", embeddings), ("rows of the head", rows)):
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"The {what} are not finite.")
        wide = values.detach().double()
        if float((wide - wide.mean(0)).abs().max()) <= 1e-7 * float(wide.abs().max()):
            raise InputError(f"The {what} are all alike, so that no map can be learnt.")


def _without_own_mean(targets: Tensor) -> Tensor:
    """Centred rows (n, d) less the mean of the others instead of the mean of all."""
    return targets * (len(targets) / (len(targets) - 1))


def _train(inputs: Tensor, outputs: Tensor, hidden: int, seed: int) -> torch.nn.Module:
    layers = (torch.nn.Linear(inputs.shape[1], hidden), torch.nn.Linear(hidden, outputs.shape[1]))
    network = torch.nn.Sequential(layers[0], torch.nn.GELU(), layers[1])
    generator = torch_generator(seed, "name map", str(tuple(inputs.shape)))
    with torch.inference_mode(False), torch.enable_grad():
        inputs, outputs = inputs.clone(), outputs.clone()
        for layer in layers:
            torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            torch.nn.init.zeros_(layer.bias)
        optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
        for _ in range(_STEPS):
            optimiser.zero_grad(set_to_none=True)
            (network(inputs) - outputs).square().mean().backward()
            optimiser.step()
            schedule.step()
    return network.requires_grad_(False).eval()
