"""Affine ridge maps in closed form, the strength chosen on held-out pictures from one eigendecomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whylens.alignment.aligner import Aligner, AlignmentReport
from whylens.alignment.moments import Moments
from whylens.errors import FitError, InputError

# Half decades, from practically unpenalised to shrinking the average direction to a tenth.
RIDGE_GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 3))
# Chosen on four planted rules (docs/planted.md); on the built-in lens 0.15 to 0.5 rank a class's own descriptors alike.
REVERSE_SLACK = 0.3
MINIMUM_PICTURES = 50
MINIMUM_HELD_OUT = 10
# Below this share the correlation between predicted and true presence of a typical phrase is under sqrt(0.05) = 0.22,
# and a ranking of phrases is mostly noise; aligners between unrelated networks on enough pictures reach 0.2 to 0.6.
MINIMUM_R2 = 0.05
_ADVICE = (
    "Try more pictures, pictures nearer to what the classifier was trained on, or another encoder. Features of a "
    "network "
    "with random weights cannot be aligned."
)


@dataclass(frozen=True, eq=False)
class RidgeMap:
    """One direction: ``y = x @ weight.T + bias`` in fp64, its strength and its held-out R2."""

    weight: Tensor
    bias: Tensor
    ridge: float
    r2: float


def fit_aligner(
    moments: Moments,
    held_out_features: Tensor,
    held_out_embeddings: Tensor,
    *,
    minimum_r2: float = MINIMUM_R2,
    ridges: Sequence[float] = RIDGE_GRID,
    reverse_slack: float = REVERSE_SLACK,
) -> Aligner:
    """Fit the affine maps between features and embeddings, both directions.

    Each map minimises ``mean |y - W x - b|**2 + ridge * s * |W|**2``, s the mean variance of a coordinate of x. The
    bias is not penalised: the data are centred exactly, and the bias follows from the means.

    The forward map takes the strength of least held-out error. The reverse map takes the largest strength that keeps
    ``1 - reverse_slack`` of the best held-out R2, because it is used on phrases, not on pictures: phrase embeddings
    reach into directions that pictures hardly span, and the strength that is best for pictures may multiply those a
    thousandfold (measured on the built-in lens, where it ranked a class's own descriptors hardly above chance).

    Args:
        moments: of the fitting pictures.
        held_out_features: (N, d), pictures that are not in ``moments``. They choose the strength of either map and
            measure its quality.
        held_out_embeddings: (N, m), the same pictures.
        minimum_r2: refuse when the held-out R2, or the mean cosine between centred predictions and truth, is below
        this.
        ridges: strengths to choose from, relative to s.
        reverse_slack: share of the best held-out R2, in [0, 1), that the reverse map may give up for a larger strength.

    Raises:
        FitError: too few pictures, features or embeddings that do not vary or are not finite, or a fit below
            ``minimum_r2``; the message says what to try.
        InputError: for shapes that do not fit.

    Cost: one symmetric eigendecomposition for each side (d**3 and m**3), no pass through a network.
    """
    f, g = _checked_held_out(moments, held_out_features, held_out_embeddings)
    if not ridges or min(ridges) <= 0:
        raise InputError(f"Ridge strengths must be positive numbers; they are {tuple(ridges)}.")
    if not 0 <= reverse_slack < 1:
        raise InputError(f"reverse_slack must lie in [0, 1); it is {reverse_slack}.")
    covariance_f, cross, covariance_g = moments.covariances()
    mean_f, mean_g = moments.means()
    _refuse_constant(covariance_f, mean_f, "features", "The split of the classifier may be at the wrong layer.")
    _refuse_constant(covariance_g, mean_g, "embeddings", "All pictures may be the same.")

    forward = _ridge_map(covariance_f, cross, mean_f, mean_g, f, g, ridges)
    reverse = _ridge_map(covariance_g, cross.T, mean_g, mean_f, g, f, ridges, reverse_slack)

    predicted = f @ forward.weight.float().T + forward.bias.float()
    centre = mean_g.float()
    cosine = torch.nn.functional.cosine_similarity(predicted, g).mean()
    centred = torch.nn.functional.cosine_similarity(predicted - centre, g - centre).mean()
    report = AlignmentReport(
        r2=forward.r2,
        cosine=float(cosine),
        reverse_r2=reverse.r2,
        ridge=forward.ridge,
        reverse_ridge=reverse.ridge,
        images=moments.count,
        held_out=len(f),
        centred_cosine=float(centred),
    )
    _refuse_poor(report, minimum_r2)
    return Aligner(
        weight=forward.weight.float(),
        bias=forward.bias.float(),
        reverse_weight=reverse.weight.float(),
        reverse_bias=reverse.bias.float(),
        feature_mean=mean_f.float(),
        embedding_mean=mean_g.float(),
        report=report,
    )


def held_out_r2(predicted: Tensor, truth: Tensor) -> float:
    """Share of the total variance of ``truth`` (N, k) that ``predicted`` explains; 0 is as good as the mean."""
    total = float((truth - truth.mean(0)).double().square().sum())
    residual = float((truth - predicted).double().square().sum())
    return 1.0 - residual / total if total > 0 else float("nan")


def _ridge_map(
    covariance: Tensor,
    cross: Tensor,
    mean_x: Tensor,
    mean_y: Tensor,
    x: Tensor,
    y: Tensor,
    ridges: Sequence[float],
    slack: float = 0.0,
) -> RidgeMap:
    scale = float(covariance.diagonal().mean())
    values, vectors = torch.linalg.eigh(covariance)
    # Rounding leaves tiny negative eigenvalues where the data do not fill the space.
    values = values.clamp(min=0)
    projected = vectors.T @ cross
    strength = _choose(values, vectors, projected, mean_x, mean_y, x, y, [r * scale for r in ridges], slack)
    weight = (vectors @ (projected / (values + strength)[:, None])).T
    bias = mean_y - weight @ mean_x
    predicted = (x - mean_x.float()) @ weight.float().T + mean_y.float()
    return RidgeMap(weight, bias, strength / scale, held_out_r2(predicted, y))


def _choose(
    values: Tensor,
    vectors: Tensor,
    projected: Tensor,
    mean_x: Tensor,
    mean_y: Tensor,
    x: Tensor,
    y: Tensor,
    strengths: Sequence[float],
    slack: float,
) -> float:
    """The strength of least held-out squared error, or the largest that keeps ``1 - slack`` of what that one explains.

    In the eigenbasis the map is ``D P`` with ``D = 1 / (values + strength)``. The held-out error is then quadratic in
    the diagonal of D, so after two matrix products every strength costs only d**2.
    """
    rows = (x - mean_x.float()) @ vectors.float()
    targets = y - mean_y.float()
    p = projected.float()
    quadratic = ((rows.T @ rows) * (p @ p.T)).double()
    linear = ((rows.T @ targets) * p).sum(1).double()
    errors = []
    for strength in strengths:
        shrink = 1.0 / (values + strength)
        errors.append(float(shrink @ quadratic @ shrink - 2 * shrink @ linear))
    # Each error lacks the total variance, a constant, so its negative is what the map explains.
    best = min(errors)
    if slack == 0 or best >= 0:
        return strengths[errors.index(best)]
    return max(r for r, error in zip(strengths, errors, strict=True) if error <= (1 - slack) * best)


def _checked_held_out(moments: Moments, features: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    f, g = features.detach().float().cpu(), embeddings.detach().float().cpu()
    expected = (moments.width, moments.embedding_width)
    if f.ndim != 2 or g.ndim != 2 or len(f) != len(g) or (f.shape[1], g.shape[1]) != expected:
        raise InputError(
            f"Held-out pairs must be (N, {expected[0]}) and (N, {expected[1]}); they are {tuple(f.shape)} and "
            f"{tuple(g.shape)}."
        )
    if moments.count < MINIMUM_PICTURES or len(f) < MINIMUM_HELD_OUT:
        raise FitError(
            f"Too few pictures: {moments.count} to fit on and {len(f)} held out; at least {MINIMUM_PICTURES} and "
            f"{MINIMUM_HELD_OUT} are needed, a few thousand are good. Labels are not needed, so any pictures of the "
            "classifier's domain will do."
        )
    for values, what in ((f, "feature"), (g, "embedding coordinate")):
        bad = ~torch.isfinite(values)
        if bool(bad.any()):
            units = bad.any(0).nonzero().flatten().tolist()
            raise FitError(
                f"{len(units)} {what}s of the held-out pictures are NaN or infinite (first: number {units[0]}). "
                "Run the network in fp32 and check its weights."
            )
    return f, g


def _refuse_constant(covariance: Tensor, mean: Tensor, what: str, hint: str) -> None:
    variance = float(covariance.diagonal().sum())
    # fp32 inputs cannot hold less relative spread than this.
    if variance <= 1e-13 * float(mean.square().sum()) or variance == 0.0:
        raise FitError(
            f"The {what} do not vary from picture to picture (zero variance), so there is nothing to align. {hint}"
        )


def _refuse_poor(report: AlignmentReport, minimum: float) -> None:
    if report.r2 < minimum or report.centred_cosine < minimum:
        raise FitError(
            f"The aligner is too poor to be believed: on {report.held_out} held-out pictures it explains "
            f"{report.r2:.1%} of "
            f"the encoder's variance (centred cosine {report.centred_cosine:.2f}), fitted on {report.images}; "
            f"at least {minimum:.0%} is asked for (minimum_r2). {_ADVICE}"
        )
    if minimum >= 0 and report.reverse_r2 <= 0:
        raise FitError(
            f"The reverse map is worse than the mean feature: held-out R2 {report.reverse_r2:.3f}, fitted on "
            f"{report.images} "
            f"pictures. {_ADVICE}"
        )
