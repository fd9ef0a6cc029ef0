"""B-cosification: an ordinary pretrained CNN becomes a B-cos network to be fine-tuned (after arXiv 2411.00715).

First the network is rewritten in B-cos layers without changing its function, and that is checked. Then the steps follow
that do change it: biases go, max pooling becomes average pooling, B becomes 2. What they cost is regained by fine-tuning
(:mod:`whylens.bcos.training`).

Our own reconstruction where it matters for exactness: mean and standard deviation are written into the first filters.
On the channels x and 1 - x the normalised filter w (x - m) / s is w (1 - m) / s on x and -w m / s on 1 - x, borders
included, so neither a bias nor a normalised input is left, and contributions are those of the picture's own pixels.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from whylens.bcos.contributions import pixel_contributions, replay_gap
from whylens.bcos.ends import AddInverse, LogitLayer, default_bias
from whylens.bcos.gates import Gate
from whylens.bcos.layers import BcosConv2d, BcosLinear
from whylens.bcos.norms import BatchNormUncentered2d, DetachableLayerNorm, GroupNorm2d
from whylens.bcos.training import calibrate_norms
from whylens.errors import ModelError

PRESERVED = 1e-5

_GATED: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}
_REFUSED = (
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.ConvTranspose2d,
    nn.Conv1d,
    nn.Conv3d,
    nn.Softmax,
    nn.Tanh,
    nn.Sigmoid,
    nn.Hardsigmoid,
)


@dataclass(frozen=True)
class Change:
    """One thing that was done to one layer.

    Attributes:
        layer: its name.
        what: in words.
        preserving: the network's function stayed the same.
    """

    layer: str
    what: str
    preserving: bool


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion changed, and what was measured about it.

    Attributes:
        changes: in the order in which they were made.
        preserved: largest difference of the logits after the preserving steps, over the logits' largest size (fp64).
        completeness: of the finished network, the largest share of a logit that pixels and constants leave open (fp64).
        replay: largest error of the held network as a linear map on other pictures (fp64); above 1e-6 where a gate is no
            layer of its own (``functional.relu``), which the gradient handles and a replay does not.
    """

    changes: tuple[Change, ...]
    preserved: float
    completeness: float
    replay: float

    def summary(self) -> dict[str, int]:
        """How often each thing was done, the frequent first."""
        counts: dict[str, int] = {}
        for change in self.changes:
            counts[change.what] = counts.get(change.what, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


class Shift(nn.Module):
    """Adds one number a channel: a bias that waits to be removed."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (..., C) to the same shape."""
        return x + (self.bias.view(-1, 1, 1) if x.ndim == 4 else self.bias)


def bcosify(
    module: nn.Module,
    *,
    size: int | tuple[int, int] = 224,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    b: float = 2,
) -> tuple[nn.Module, ConversionReport]:
    """A B-cos network with the weights of an ordinary CNN; its accuracy comes back with fine-tuning.

    Args:
        module: a CNN of convolutions, batch, layer or group norms, linear layers and activations that are modules
            (torchvision and timm ResNets first of all); left as it is.
        size: side of its input in pixels, or height and width.
        mean: subtracted from pictures in [0, 1] before the network; written into the first filters.
        std: divides them.
        b: exponent of the converted layers.

    Returns:
        The network, in evaluation mode, which takes pictures (B, 3, H, W) in [0, 1] and gives logits for a sigmoid; and
        the report.

    Raises:
        ModelError: a layer that cannot be converted; no convolution that reads the picture; a network that the
            preserving steps would change, since it does more than its layers say.

    Cost: 7 passes of 2 pictures and one backward pass, in double precision.
    """
    network, changes, preserved = converted(module, size=size, mean=mean, std=std, b=b)
    exact = copy.deepcopy(network).double()
    x = _pictures(size)
    # With the variances of the old network the signal could fade to nothing, about which nothing can be measured.
    calibrate_norms(exact, [x])
    gap = float(pixel_contributions(exact, x).gap.max())
    encoded = AddInverse()(x)
    other = torch.rand(encoded.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    replay = float(replay_gap(exact, encoded, other).max())
    return network, ConversionReport(tuple(changes), preserved, gap, replay)


def converted(
    module: nn.Module,
    *,
    size: int | tuple[int, int] = 224,
    mean: Sequence[float],
    std: Sequence[float],
    b: float = 2,
) -> tuple[nn.Module, list[Change], float]:
    """All steps of :func:`bcosify` without its measurements of the finished network.

    Returns:
        The network in evaluation mode, the changes, and the largest difference of the logits after the preserving steps.

    Raises:
        ModelError: as in :func:`bcosify`.
    """
    network, changes, preserved = rewrite(module, size=size, mean=mean, std=std)
    return network, changes + _leave_ordinary(network, b), preserved


def rewrite(
    module: nn.Module, *, size: int | tuple[int, int] = 224, mean: Sequence[float], std: Sequence[float]
) -> tuple[nn.Module, list[Change], float]:
    """The preserving steps alone: the same function of pictures in [0, 1], in B-cos layers with B = 1 and biases.

    Returns:
        The network in evaluation mode, the changes, and the largest difference of its logits over their largest size.

    Raises:
        ModelError: as in :func:`bcosify`.
    """
    _refuse(module)
    pictures = _pictures(size)
    m, s = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (list(mean), list(std)))
    original = copy.deepcopy(module).double().eval()
    normalised = (pictures - m) / s
    plan = _trace(original, normalised)
    converted = copy.deepcopy(module).double().eval()
    for parameter in converted.parameters():
        parameter.requires_grad_(True)
    changes = _replace_ends(converted, plan, m, s)
    changes += _replace_layers(converted, set(plan.done))
    with torch.no_grad():
        try:
            again = converted(pictures)
        except Exception as error:
            raise ModelError(
                f"{type(module).__name__} does not run on B-cos layers ({type(error).__name__}: {error}), so it cannot "
                "be converted."
            ) from error
    gap = float((again - plan.logits).abs().max() / plan.logits.abs().max().clamp_min(1e-300))
    if not gap <= PRESERVED:
        raise ModelError(
            f"Rewriting {type(module).__name__} in B-cos layers changed its logits by {gap:.2g} of their size (at most "
            f"{PRESERVED:g} is accepted), so it does more than its layers say, such as normalising the picture itself."
        )
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    return converted.to(dtype), changes, gap


@dataclass
class _Plan:
    """Where the picture goes in and the logits come out."""

    logits: Tensor
    first: str
    last: str
    pool: str | None
    idle: list[str]

    @property
    def done(self) -> list[str]:
        return [self.first, self.last, *([self.pool] if self.pool else []), *self.idle]


def _trace(network: nn.Module, x: Tensor) -> _Plan:
    """Run the network once and see which convolution reads the picture, which layer gives the logits, what pools."""
    names = {m: n for n, m in network.named_modules()}
    reads: list[str] = []
    linears: list[tuple[str, Tensor, Tensor]] = []
    pools: list[tuple[str, Tensor, Tensor]] = []
    drops: list[tuple[str, Tensor]] = []

    def hook(m: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not inputs or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            return
        if isinstance(m, nn.Conv2d) and inputs[0].data_ptr() == x.data_ptr():
            reads.append(names[m])
        elif isinstance(m, nn.Linear):
            linears.append((names[m], inputs[0], output))
        elif isinstance(m, nn.Dropout):
            drops.append((names[m], inputs[0]))
        elif _pools(m, inputs[0], output):
            pools.append((names[m], inputs[0], output))

    handles = [m.register_forward_hook(hook) for m in network.modules() if m is not network]
    try:
        with torch.no_grad():
            logits = network(x)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ModelError(f"{type(network).__name__} gives no logits (B, C), so it cannot be converted.")
    first = [n for n in dict.fromkeys(reads) if network.get_submodule(n).in_channels == 3]
    if len(first) != 1:
        raise ModelError(
            f"{type(network).__name__} has {len(first)} convolutions that read the picture; one is needed, whose "
            "filters become six-channel ones."
        )
    ends = [(n, given) for n, given, out in linears if out.data_ptr() == logits.data_ptr()]
    if not ends:
        raise ModelError(
            f"The logits of {type(network).__name__} do not come straight from a linear layer, so its head cannot be "
            "converted."
        )
    last, given = ends[-1]
    pool = None
    for name, maps, pooled in pools:
        mean = maps.mean(dim=(2, 3))
        if (
            pooled.flatten(1).shape == given.shape
            and torch.allclose(mean, given)
            and torch.allclose(pooled.flatten(1), mean)
        ):
            pool = name
    idle = [
        n
        for n, seen in drops
        if pool is not None and seen.flatten(1).shape == given.shape and torch.equal(seen.flatten(1), given)
    ]
    return _Plan(logits, first[0], last, pool, idle)


def _pools(layer: nn.Module, maps: Tensor, output: Tensor) -> bool:
    """Whether a layer without weights brings maps of several positions down to one number a channel."""
    # With a single position a flattening looks the same, unless the layer says what it is.
    several = maps.ndim == 4 and (maps.shape[2:].numel() > 1 or isinstance(layer, nn.AdaptiveAvgPool2d))
    return several and not list(layer.parameters()) and output.numel() == maps.shape[:2].numel()


def _replace_ends(network: nn.Module, plan: _Plan, mean: Tensor, std: Tensor) -> list[Change]:
    """The six-channel first convolution, and the classifier, before the average where there is one."""
    changes = []
    first = cast(nn.Conv2d, network.get_submodule(plan.first))
    if first.groups != 1:
        raise ModelError(f"The first convolution, {plan.first}, has {first.groups} groups; it must have one.")
    weight = first.weight.detach()
    six = _convolution(first, torch.cat([weight * (1 - mean) / std, -weight * mean / std], dim=1))
    _put(network, plan.first, nn.Sequential(OrderedDict(encode=AddInverse(), **_with_shift(six, first.bias))))
    changes.append(Change(plan.first, "reads six channels, mean and standard deviation written into its filters", True))

    last = cast(nn.Linear, network.get_submodule(plan.last))
    end: OrderedDict[str, nn.Module] = OrderedDict()
    if plan.pool is not None:
        head = BcosConv2d(last.in_features, last.out_features, b=1, unit=False).to(last.weight.dtype)
        head.linear.weight = nn.Parameter(last.weight.detach().clone()[:, :, None, None])
        pool = network.get_submodule(plan.pool)
        _put(network, plan.pool, nn.Sequential(OrderedDict(head=head, pool=pool)))
        changes.append(Change(plan.last, "classifies every position before the average", True))
    else:
        end["head"] = _linear(last)
        changes.append(Change(plan.last, "is a B-cos layer", True))
    if last.bias is not None:
        end["shift"] = Shift(last.bias)
    end["logit_layer"] = LogitLayer()
    _put(network, plan.last, nn.Sequential(end))
    for name in plan.idle:
        _put(network, name, nn.Identity())
        changes.append(Change(name, "dropout before the classifier removed", True))
    return changes


def _replace_layers(network: nn.Module, done: set[str]) -> list[Change]:
    """Every other layer by its B-cos counterpart with the same function."""
    changes = []
    for name, layer in list(network.named_modules()):
        if any(name == d or name.startswith(f"{d}.") for d in done):
            continue
        replaced = _counterpart(layer)
        if replaced is not None:
            new, what = replaced
            new.train(layer.training)
            _put(network, name, new)
            changes.append(Change(name, what, True))
    return changes


def _counterpart(layer: nn.Module) -> tuple[nn.Module, str] | None:
    if isinstance(layer, nn.Conv2d):
        new = _convolution(layer, layer.weight.detach().clone())
        return _maybe_shifted(new, layer.bias), "is a B-cos layer"
    if isinstance(layer, nn.Linear):
        return _maybe_shifted(_linear(layer), layer.bias), "is a B-cos layer"
    if isinstance(layer, nn.BatchNorm2d):
        norm = _batch_norm(layer)
        activation = getattr(layer, "act", None)
        if isinstance(activation, nn.Module):
            # timm's batch norms carry the activation that follows them.
            gate = Gate(_GATED[type(activation)]) if type(activation) in _GATED else activation
            return nn.Sequential(
                OrderedDict(norm=norm, act=gate)
            ), "is an uncentred batch norm with the mean in its bias"
        return norm, "is an uncentred batch norm with the mean in its bias"
    if type(layer) is nn.LayerNorm:
        new_norm = DetachableLayerNorm(layer.normalized_shape, layer.eps, affine=layer.elementwise_affine, bias=True)
        return _same_affine(new_norm, layer), "holds its standard deviation"
    if type(layer) is nn.GroupNorm:
        group = GroupNorm2d(
            layer.num_groups, layer.num_channels, layer.eps, centered=True, affine=layer.affine, bias=True
        )
        return _same_affine(group, layer), "holds its standard deviation"
    if type(layer) in _GATED and not (isinstance(layer, nn.GELU) and layer.approximate != "none"):
        return Gate(_GATED[type(layer)]), "is a gate"
    return None


def _leave_ordinary(network: nn.Module, b: float) -> list[Change]:
    """The steps that change the function: no biases, average pooling, B."""
    changes = []
    for name, layer in list(network.named_modules()):
        if isinstance(layer, Shift):
            _put(network, name, nn.Identity())
            changes.append(Change(name, "bias removed", False))
        elif isinstance(layer, (BatchNormUncentered2d, DetachableLayerNorm, GroupNorm2d)) and layer.bias is not None:
            layer.bias = None
            changes.append(Change(name, "bias removed", False))
        elif isinstance(layer, nn.MaxPool2d):
            geometry = (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
            _put(network, name, nn.AvgPool2d(*geometry))
            changes.append(Change(name, "averages instead of taking the largest", False))
        elif isinstance(layer, (BcosConv2d, BcosLinear)) and b != 1:
            layer.b = b
            changes.append(Change(name, f"has B = {b:g}", False))
        elif isinstance(layer, LogitLayer):
            classes = _classes_before(network)
            layer.logit_bias = default_bias(classes)
            changes.append(Change(name, "logit bias such that a sigmoid starts at 1 / classes", False))
    return changes


def _classes_before(network: nn.Module) -> int:
    heads = [m for m in network.modules() if isinstance(m, (BcosConv2d, BcosLinear))]
    head = next((m for n, m in network.named_modules() if n.endswith("head") and m in heads), heads[-1])
    return head.out_channels if isinstance(head, BcosConv2d) else head.out_features


def _convolution(layer: nn.Conv2d, weight: Tensor) -> BcosConv2d:
    new = BcosConv2d(
        weight.shape[1] * layer.groups,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        layer.groups,
        layer.padding_mode,
        b=1,
        unit=False,
    )
    new.linear.weight = nn.Parameter(weight)
    return new


def _linear(layer: nn.Linear) -> BcosLinear:
    new = BcosLinear(layer.in_features, layer.out_features, b=1, unit=False)
    new.linear.weight = nn.Parameter(layer.weight.detach().clone())
    return new


def _batch_norm(layer: nn.BatchNorm2d) -> BatchNormUncentered2d:
    if layer.running_mean is None or layer.running_var is None:
        raise ModelError("A batch norm without running statistics depends on the batch and cannot be converted.")
    momentum = 0.1 if layer.momentum is None else layer.momentum
    new = BatchNormUncentered2d(layer.num_features, layer.eps, momentum, bias=True).to(layer.running_var)
    weight = torch.ones_like(layer.running_var) if layer.weight is None else layer.weight.detach()
    bias = torch.zeros_like(weight) if layer.bias is None else layer.bias.detach()
    new.running_var.copy_(layer.running_var)
    new.weight = nn.Parameter(weight.clone())
    new.bias = nn.Parameter(bias - weight * layer.running_mean * (layer.running_var + layer.eps).rsqrt())
    return new


def _same_affine(new: nn.Module, old: nn.Module) -> nn.Module:
    for name in ("weight", "bias"):
        value = getattr(old, name, None)
        setattr(new, name, None if value is None else nn.Parameter(value.detach().clone()))
    return new


def _maybe_shifted(layer: nn.Module, bias: Tensor | None) -> nn.Module:
    return layer if bias is None else nn.Sequential(_with_shift(layer, bias))


def _with_shift(layer: nn.Module, bias: Tensor | None) -> OrderedDict[str, nn.Module]:
    parts: OrderedDict[str, nn.Module] = OrderedDict(bcos=layer)
    if bias is not None:
        parts["shift"] = Shift(bias)
    return parts


def _refuse(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        odd = isinstance(layer, (nn.LayerNorm, nn.GroupNorm)) and type(layer) not in (nn.LayerNorm, nn.GroupNorm)
        if isinstance(layer, _REFUSED) or odd:
            raise ModelError(
                f"Layer {name!r} is {type(layer).__name__}, which has no B-cos counterpart here. CNNs of Conv2d, Linear, "
                "BatchNorm2d, LayerNorm, GroupNorm, pooling and activation modules can be converted."
            )


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)


def _pictures(size: int | tuple[int, int]) -> Tensor:
    sides = (size, size) if isinstance(size, int) else size
    return torch.rand((2, 3, *sides), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
