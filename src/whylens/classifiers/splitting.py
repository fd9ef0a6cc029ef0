"""Cutting a network into features and head so that ``head(features(x)) == logits(x)``.

Order of the search, each proposal proved by recomputing the logits: the input of the last layer when its output is the
logits; the joined inputs of several layers that all give class scores (two heads that are averaged); the input of one
of the last layers with weights; and, going backwards, the output of any layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from whylens.classifiers.calls import (
    Recording,
    Site,
    Stop,
    record,
    replay,
    run_tapped,
    site_of,
    tensors_of,
    with_batch_axes,
)
from whylens.classifiers.layouts import Layout, read_layout
from whylens.classifiers.outputs import extract_logits
from whylens.classifiers.quiet import quiet
from whylens.errors import ModelError, SplitError, WhylensError, unknown_name

_MOST_INPUTS = 3
_MOST_OUTPUTS = 60


@dataclass(frozen=True)
class Probe:
    """A network, random normalised pictures for it, and the calls it makes on them."""

    module: nn.Module
    pictures: Tensor
    recording: Recording
    logits: Tensor
    _axes: list[Recording] = field(default_factory=list, repr=False)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.pictures.shape[-2], self.pictures.shape[-1]

    def recording_with_axes(self) -> Recording:
        """The recording with batch axes marked; costs one pass of 3 pictures the first time."""
        if not self._axes:
            three = torch.cat([self.pictures, self.pictures[:1].flip(-1)])
            self._axes.append(with_batch_axes(self.recording, record(self.module, three)))
        return self._axes[0]

    def names(self) -> list[str]:
        """Names of the layers that were called, outermost first within each other, in the order of their calls."""
        return list(dict.fromkeys(call.name for call in self.recording.calls if call.name))


@dataclass(frozen=True)
class Split:
    """A proved cut. Tensors are normalised pictures in the network's own precision.

    Attributes:
        probe: the network and its recording.
        sites: where it is cut; the features of several sites are joined along d.
        layouts: how each site's tensor is read.
        direct: the site's layer gives the logits itself, so the head is one call of it.
    """

    probe: Probe
    sites: tuple[Site, ...]
    layouts: tuple[Layout, ...]
    direct: bool

    @property
    def name(self) -> str:
        """Readable name of the cut."""
        return " + ".join(str(site) for site in self.sites)

    @property
    def layout(self) -> Layout:
        """The layout of the joined features."""
        if len(self.layouts) == 1:
            return self.layouts[0]
        return Layout("vector", self.width, (self.width,))

    @property
    def width(self) -> int:
        """Number of feature units d."""
        return sum(layout.width for layout in self.layouts)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, d) or (B, d, h, w); the pass ends where they are known."""
        found: dict[int, Tensor] = {}

        def take(index: int, raw: Tensor) -> Tensor:
            found[index] = raw
            if len(found) == len(self.sites):
                raise Stop
            return raw

        try:
            run_tapped(self.probe.module, x, self.sites, take)
        except Stop:
            return self._join([found[i] for i in range(len(self.sites))])
        raise SplitError(f"The network no longer calls {self.name}; it did when it was loaded.")

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both from one pass; the logits depend on the returned features."""
        found: dict[int, Tensor] = {}

        def pass_through(index: int, raw: Tensor) -> Tensor:
            layout = self.layouts[index]
            found[index] = layout.to_features(raw)
            # A clone, because a following in-place layer would otherwise change the features.
            return layout.to_raw(found[index]).clone()

        output = run_tapped(self.probe.module, x, self.sites, pass_through)
        if len(found) != len(self.sites):
            raise SplitError(f"The network no longer calls {self.name}; it did when it was loaded.")
        parts = [found[i] for i in range(len(self.sites))]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), extract_logits(output, x.shape[0])

    def head(self, z: Tensor) -> Tensor:
        """Logits (B, C) of features."""
        batch = z.shape[0]
        if self.direct:
            return self.sites[0].module(self.layouts[0].to_raw(z)).reshape(batch, -1)
        pieces = z.split([layout.width for layout in self.layouts], dim=1)
        values = [layout.to_raw(piece).clone() for layout, piece in zip(self.layouts, pieces, strict=True)]
        blank = torch.zeros((batch, *self.probe.pictures.shape[1:]), dtype=z.dtype, device=z.device)
        output = replay(self.probe.module, blank, self.sites, self.probe.recording_with_axes(), values)
        return extract_logits(output, batch)

    def _join(self, raws: Sequence[Tensor]) -> Tensor:
        parts = [layout.to_features(raw) for layout, raw in zip(self.layouts, raws, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def make_probe(module: nn.Module, pictures: Tensor) -> Probe:
    """Run the network on two normalised pictures and write down what it calls.

    Raises:
        ModelError: when it fails on them, or gives no logits.
    """
    try:
        with quiet(module), torch.no_grad():
            recording = record(module, pictures, keep=lambda m: m is not module and _has_weights(m))
    except WhylensError:
        raise
    except Exception as error:
        raise ModelError(
            f"The network failed on random pictures of the shape {tuple(pictures.shape)}: {type(error).__name__}: "
            f"{error} Give the size (size=) that it takes, and a network that takes RGB pictures."
        ) from error
    logits = extract_logits(recording.output, pictures.shape[0])
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("The network gives NaN or infinite logits for random pictures, so it cannot be explained.")
    return Probe(module, pictures, recording, logits)


def find_split(probe: Probe) -> Split:
    """The cut nearest to the logits that reproduces them.

    Raises:
        SplitError: when none does.
    """
    tried: list[str] = []
    with quiet(probe.module), torch.no_grad():
        for sites, direct in _proposals(probe):
            split = _try(probe, sites, direct=direct)
            if isinstance(split, Split):
                return split
            tried.append(str(sites[-1]))
    raise SplitError(
        f"No split into features and head reproduces the logits ({len(tried)} layers tried, the last was "
        f"{tried[-1] if tried else 'none'}). Name a layer that every path to the logits "
        f"goes through: features='...'; layers of this network: {', '.join(probe.names()[-8:]) or 'none'}."
    )


def named_split(probe: Probe, name: str) -> Split:
    """The cut at the output of one layer (its last call).

    Raises:
        InputError: for a name that the network does not have.
        SplitError: when the layer was not called, or its output does not determine the logits.
    """
    known = [n for n, _ in probe.module.named_modules() if n]
    if name not in known:
        raise unknown_name("layer", name, known)
    calls = [call for call in probe.recording.calls if call.name == name]
    if not calls:
        raise SplitError(
            f"Layer {name!r} is not called in a forward pass (it may be unused, a second name of a layer, or run by "
            f"other code than its own forward). Called layers: {', '.join(probe.names()[-8:])}."
        )
    site = site_of(max(calls, key=lambda c: c.end), at_input=False)
    with quiet(probe.module), torch.no_grad():
        split = _try(probe, (site,), direct=False)
    if isinstance(split, Split):
        return split
    raise SplitError(
        f"The output of layer {name!r} cannot be the features: {split}. Choose the layer that contains it, or another: "
        "features='...' takes any name of Classifier.layer_names()."
    )


def tolerance(logits: Tensor) -> float:
    """Largest difference between recomputed and real logits that counts as rounding in the logits' precision."""
    eps = torch.finfo(logits.dtype).eps
    spread = float((logits - logits.mean(dim=0)).abs().max()) if len(logits) > 1 else float(logits.abs().max())
    return min(1000 * eps, 0.05) * spread + min(100 * eps, 0.05) * float(logits.abs().max())


def _proposals(probe: Probe) -> list[tuple[tuple[Site, ...], bool]]:
    logits = probe.logits
    recent = [call for call, _ in reversed(probe.recording.recent)]
    proposals: list[tuple[tuple[Site, ...], bool]] = []
    direct: Site | None = None
    scoring: list[Site] = []
    for call, output in probe.recording.recent:
        tensors = tensors_of(output)
        if len(tensors) == 1 and _same(tensors[0], logits):
            direct = site_of(call, at_input=True)
        if tensors and tensors[0].shape == logits.shape:
            scoring.append(site_of(call, at_input=True))
    if direct is not None:
        proposals.append(((direct,), True))
    elif len(scoring) > 1:
        proposals.append((tuple(scoring), False))
    proposals += [((site_of(call, at_input=True),), False) for call in recent[:_MOST_INPUTS]]
    by_end = sorted((c for c in probe.recording.calls if c.name), key=lambda c: -c.end)
    return proposals + [((site_of(call, at_input=False),), False) for call in by_end[:_MOST_OUTPUTS]]


def _try(probe: Probe, sites: tuple[Site, ...], *, direct: bool) -> Split | str:
    """The proved split, or why it is none."""
    raws: dict[int, Tensor] = {}

    def take(index: int, raw: Tensor) -> Tensor:
        raws[index] = raw
        if len(raws) == len(sites):
            raise Stop
        return raw

    try:
        run_tapped(probe.module, probe.pictures, sites, take)
    except Stop:
        pass
    except SplitError as error:
        return str(error)
    if len(raws) != len(sites):
        return "it is not reached in a second pass"
    layouts: list[Layout] = []
    for index, site in enumerate(sites):
        raw = raws[index]
        if raw.ndim < 2 or raw.shape[0] != probe.pictures.shape[0]:
            return f"its shape {tuple(raw.shape)} does not start with the number of pictures"
        prefix = getattr(probe.module, "num_prefix_tokens", None)
        prefix = prefix if isinstance(prefix, int) else None
        layout = read_layout(raw, probe.picture_size, squeeze=site.at_input, prefix=prefix)
        if layout is None:
            return f"its shape {tuple(raw.shape)} and type {raw.dtype} are neither a vector, a map nor tokens"
        layouts.append(layout)
    if len(sites) > 1 and any(layout.spatial for layout in layouts):
        return "the heads read different kinds of features"
    split = Split(probe, sites, tuple(layouts), direct)
    try:
        z = split.features(probe.pictures)
        again = split.head(z)
    except WhylensError as error:
        return str(error)
    except Exception as error:
        return f"running the rest of the network from there failed ({type(error).__name__}: {error})"
    if again.shape != probe.logits.shape:
        return f"the rest of the network gave the shape {tuple(again.shape)} instead of {tuple(probe.logits.shape)}"
    gap = float((again - probe.logits).abs().max())
    if not gap <= tolerance(probe.logits):
        return f"something bypasses it, since the logits recomputed from it differ by {gap:.3g}"
    return split


def _has_weights(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return any(p.ndim >= 2 for p in own) and next(module.children(), None) is None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.numel() == b.numel() and a.dtype == b.dtype
