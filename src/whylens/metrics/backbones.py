"""Patch features for the C2-score: callables that take pictures in [0, 1] and give one vector for every cell of a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from whylens.classifiers import Classifier
from whylens.classifiers.quiet import quiet
from whylens.encoders import Encoder, load_encoder
from whylens.encoders.builtin import BuiltinEncoder
from whylens.errors import InputError, ModelError, missing_extra, unknown_name

DINOV2 = "vit_small_patch14_dinov2.lvd142m"
DINOV2_SIDE = 224

Backbone = Callable[[Tensor], Tensor]


def load_backbone(name: str, *, device: str | torch.device | None = None, pretrained: bool = True) -> Backbone:
    """A backbone by name.

    Args:
        name: ``"builtin:NAME"``, an encoder inside the package, which needs no network; ``"dinov2"``, the one of the
            paper (ViT-S/14 at 224 pixels, its weights are downloaded); or ``"timm:NAME"``, any model of timm whose
            features are a map or tokens.
        device: where it runs.
        pretrained: False for random weights.

    Raises:
        InputError: for another name.
        MissingExtraError: when timm is needed and not installed.
        ModelError: weights that cannot be loaded.
    """
    prefix, _, rest = name.partition(":")
    if prefix == "builtin" and rest:
        return encoder_backbone(load_encoder(name, device=device))
    if name == "dinov2":
        return timm_backbone(DINOV2, size=DINOV2_SIDE, device=device, pretrained=pretrained)
    if prefix == "timm" and rest:
        return timm_backbone(rest, device=device, pretrained=pretrained)
    raise unknown_name("backbone", name, ["builtin:tiny", "dinov2", "timm:NAME"])


def encoder_backbone(encoder: Encoder) -> Backbone:
    """The cells of a built-in encoder's image tower, each carried into the encoder's space.

    The tower averages its cells and then projects, so the average of these features is the embedding before it is
    brought to unit length.

    Args:
        encoder: a built-in one.

    Raises:
        InputError: for another kind of encoder; use :func:`timm_backbone` for its tower.
    """
    if not isinstance(encoder, BuiltinEncoder):
        raise InputError(
            f"Only built-in encoders give patch features here; this is {encoder.name}. Use a backbone of timm, such as "
            f"'dinov2' or 'timm:{DINOV2}'."
        )
    tower = encoder.module.get_submodule("image")
    stem, stages, fc = (tower.get_submodule(part) for part in ("stem", "stages", "fc"))

    def features(x: Tensor) -> Tensor:
        x = _resized(x, encoder.size).float()
        inputs = (x - encoder.mean.to(x)) / encoder.std.to(x)
        with torch.no_grad():
            cells = stages(stem(inputs.to(encoder.device)))
            projected: Tensor = fc(cells.movedim(1, -1)).movedim(-1, 1)
        return projected

    return features


def timm_backbone(
    name: str = DINOV2,
    *,
    size: int | None = None,
    device: str | torch.device | None = None,
    pretrained: bool = True,
) -> Backbone:
    """Patch tokens, after the last norm, or the last feature map of a model of timm.

    Args:
        name: of the model, with its tag.
        size: side of the pictures in pixels; default: that of its weights. Pictures of another size are resized.
        device: where it runs.
        pretrained: False for random weights.

    Raises:
        MissingExtraError: when timm is not installed.
        ModelError: a model that cannot be made, or whose weights cannot be loaded.
    """
    try:
        import timm
    except ImportError:
        raise missing_extra("timm", "timm", "Backbones of timm") from None
    options = {"img_size": size, "dynamic_img_size": True} if size is not None and "vit" in name else {}
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:
        raise ModelError(f"timm's {name!r} could not be loaded: {error}") from error
    model = model.to(device or "cpu").eval().requires_grad_(False)
    config = model.pretrained_cfg
    side = size or int(config["input_size"][-1])
    return module_backbone(
        model.forward_features,
        (side, side),
        config["mean"],
        config["std"],
        prefix=int(getattr(model, "num_prefix_tokens", 0)),
        module=model,
    )


def layer_backbone(classifier: Classifier, layer: str | None = None) -> Backbone:
    """The features of any classifier, of a named layer or where it stands."""
    at = classifier if layer is None else classifier.at(layer)
    if not at.spatial:
        raise InputError(f"The {at.features_name} of {at.name} has no positions; name a layer that has.")

    def features(x: Tensor) -> Tensor:
        with torch.no_grad():
            z = at.features(_resized(x, at.size))
        # Tokens that are no grid give a column, which has no place for a prefix to be cut off.
        rows = z.flatten(0, 1)[:, :, 0] if at.layout.kind == "tokens" and z.shape[-1] == 1 else None
        if rows is None:
            return z
        return at.position_map(rows[..., None]).unflatten(0, z.shape[:2])

    return features


def module_backbone(
    forward: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    prefix: int = 0,
    module: nn.Module,
) -> Backbone:
    """Any function from normalised pictures to tokens (B, N, E), or maps (B, E, h, w) or (B, h, w, E).

    Args:
        forward: the function.
        size: height and width of the pictures that it takes.
        mean: per channel, of pictures in [0, 1].
        std: per channel.
        prefix: tokens in front of the grid, which are left out.
        module: the network behind it: run in evaluation mode, on its device.
    """
    centre, spread = (torch.tensor(list(v), dtype=torch.float32).view(3, 1, 1) for v in (mean, std))

    def features(x: Tensor) -> Tensor:
        place = next((p for p in module.parameters()), centre)
        inputs = ((_resized(x, size).float() - centre.to(x.device)) / spread.to(x.device)).to(place)
        with torch.no_grad(), quiet(module):
            return as_grid(forward(inputs), size, prefix)

    return features


def as_grid(raw: Tensor, size: tuple[int, int], prefix: int = 0) -> Tensor:
    """Tokens or maps as (B, E, rows, columns).

    Args:
        raw: (B, N, E), (B, E, h, w) or (B, h, w, E).
        size: of the picture, whose shape the grid has.
        prefix: tokens in front of the grid.

    Raises:
        ModelError: when the tokens are no grid of that shape.
    """
    if raw.ndim == 4:
        return raw if _square(raw.shape[2:], size) or not _square(raw.shape[1:3], size) else raw.movedim(-1, 1)
    if raw.ndim != 3:
        raise ModelError(f"A backbone gives tokens or maps; this one gave the shape {tuple(raw.shape)}.")
    tokens = raw[:, prefix:]
    rows = round((tokens.shape[1] * size[0] / size[1]) ** 0.5)
    if not rows or tokens.shape[1] % rows:
        raise ModelError(f"{tokens.shape[1]} tokens are no grid of a picture of {size[0]} x {size[1]} pixels.")
    return tokens.transpose(1, 2).unflatten(2, (rows, tokens.shape[1] // rows))


def _square(sides: Sequence[int], size: tuple[int, int]) -> bool:
    return abs(sides[0] * size[1] - sides[1] * size[0]) <= max(size)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    if x.ndim != 4 or x.shape[1] != 3:
        raise InputError(f"Pictures must be (B, 3, H, W) in [0, 1]; they are {tuple(x.shape)}.")
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
