"""The calls of a network's modules: recorded once by shape, tapped while it runs, replayed from a point on.

A replay runs the network's own code with the modules that finished before the point answered by zeros of the recorded
shapes, so that only what follows the point costs anything. Whatever bypasses the point comes out as zeros, hence wrong:
the check that compares the replayed logits with the real ones also proves that nothing bypasses it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from whylens.classifiers.execution import uncompiled
from whylens.errors import SplitError

Forward = Callable[..., Any]
Exchange = Callable[[int, Tensor], Tensor]

_ABSENT = object()


class Stop(BaseException):
    """Ends a forward pass early; not an ``Exception``, so that no network catches it."""


@dataclass(frozen=True)
class Spec:
    """A tensor's shape at batch 2, its dtype, and the axis that holds the batch (None: not batched)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    batch_axis: int | None = None

    def zeros(self, batch: int, like: Tensor) -> Tensor:
        """Zeros of this shape at another batch size, on the device and in the precision of ``like``."""
        shape = list(self.shape)
        if self.batch_axis is not None:
            shape[self.batch_axis] = shape[self.batch_axis] // 2 * batch
        dtype = like.dtype if self.dtype.is_floating_point else self.dtype
        return torch.zeros(shape, dtype=dtype, device=like.device)


@dataclass(frozen=True)
class Call:
    """One call of a module: ``start`` and ``end`` count events, ``occurrence`` its calls so far."""

    name: str
    module: nn.Module
    occurrence: int
    parent: int
    start: int
    end: int
    output: Any


@dataclass(frozen=True)
class Site:
    """Where a network is cut: the first tensor that goes into, or comes out of, one call."""

    name: str
    module: nn.Module
    occurrence: int
    at_input: bool
    start: int
    end: int

    @property
    def time(self) -> int:
        """When the tensor is known."""
        return self.start if self.at_input else self.end

    def __str__(self) -> str:
        return f"{'input' if self.at_input else 'output'} of {self.name or 'the network'}"


@dataclass(frozen=True)
class Recording:
    """The calls of one forward pass, ordered by their start, and the network's output."""

    calls: tuple[Call, ...]
    output: Any
    recent: tuple[tuple[Call, Any], ...]


def site_of(call: Call, *, at_input: bool) -> Site:
    """The input or output side of a recorded call."""
    return Site(call.name, call.module, call.occurrence, at_input, call.start, call.end)


@contextlib.contextmanager
def patched(wrappers: Mapping[nn.Module, Callable[[Forward], Forward]]) -> Iterator[None]:
    """Wrap the ``forward`` of modules inside the block; every one is restored at its end, also after an exception."""
    saved: list[tuple[nn.Module, Any]] = []
    try:
        for module, wrap in wrappers.items():
            saved.append((module, module.__dict__.get("forward", _ABSENT)))
            module.__dict__["forward"] = wrap(module.forward)
        yield
    finally:
        for module, original in reversed(saved):
            if original is _ABSENT:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = original


def map_tensors(tree: Any, function: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """A copy of nested tuples, lists, mappings and dataclasses with ``function`` applied to every ``kind``."""
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, Mapping):
        changed = {key: map_tensors(value, function, kind) for key, value in tree.items()}
        return type(tree)(**changed) if dataclasses.is_dataclass(tree) else type(tree)(changed)  # type: ignore[call-arg]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(item, function, kind) for item in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tensors(item, function, kind) for item in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type) and not isinstance(tree, Spec):
        fields = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree) if f.init}
        return dataclasses.replace(tree, **{k: map_tensors(v, function, kind) for k, v in fields.items()})
    return tree


def tensors_of(tree: Any, kind: type = Tensor) -> list[Any]:
    """Every tensor (or ``kind``) of a nested structure, in order."""
    found: list[Any] = []

    def collect(item: Any) -> Any:
        found.append(item)
        return item

    map_tensors(tree, collect, kind)
    return found


def record(module: nn.Module, x: Tensor, keep: Callable[[nn.Module], bool] | None = None, limit: int = 8) -> Recording:
    """Run the network once and write down its calls, outputs as shapes.

    Args:
        module: the network.
        x: its input.
        keep: the last ``limit`` calls of modules for which this is true are kept with their real output.
        limit: how many of them.
    """
    calls: dict[int, Call] = {}
    counts: dict[nn.Module, int] = {}
    recent: deque[tuple[int, Any]] = deque(maxlen=limit)
    open_calls: list[int] = []
    clock = 0

    def tick() -> int:
        nonlocal clock
        clock += 1
        return clock

    def wrapper(name: str, target: nn.Module) -> Callable[[Forward], Forward]:
        def wrap(original: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                start = tick()
                parent = open_calls[-1] if open_calls else 0
                occurrence = counts[target] = counts.get(target, 0) + 1
                open_calls.append(start)
                try:
                    output = original(*args, **kwargs)
                finally:
                    open_calls.pop()
                shapes = map_tensors(output, lambda t: Spec(tuple(t.shape), t.dtype))
                calls[start] = Call(name, target, occurrence, parent, start, tick(), shapes)
                if keep is not None and keep(target):
                    recent.append((start, output))
                return output

            return forward

        return wrap

    with uncompiled(module), patched({m: wrapper(n, m) for n, m in module.named_modules()}):
        output = module(x)
    kept = tuple((calls[start], value) for start, value in recent)
    return Recording(tuple(calls[start] for start in sorted(calls)), output, kept)


def with_batch_axes(two: Recording, three: Recording) -> Recording:
    """The recording of a batch of 2, its shapes marked with the axis that grew in a batch of 3.

    Raises:
        SplitError: when the two passes called different modules.
    """
    if [c.name for c in two.calls] != [c.name for c in three.calls]:
        raise SplitError(
            "The network calls different layers for different pictures or batch sizes, so no part of it can be run "
            "alone. Wrap the part that decides so that its control flow is fixed."
        )
    calls = []
    for a, b in zip(two.calls, three.calls, strict=True):
        marked = iter(
            [_mark(s, t) for s, t in zip(tensors_of(a.output, Spec), tensors_of(b.output, Spec), strict=True)]
        )
        calls.append(dataclasses.replace(a, output=map_tensors(a.output, partial(_next, marked), Spec)))
    return Recording(tuple(calls), two.output, two.recent)


def _next(marked: Iterator[Spec], _: Spec) -> Spec:
    return next(marked)


def _mark(two: Spec, three: Spec) -> Spec:
    for axis, (m, n) in enumerate(zip(two.shape, three.shape, strict=False)):
        if m != n and m * 3 == n * 2:
            return dataclasses.replace(two, batch_axis=axis)
    return two


def run_tapped(module: nn.Module, x: Tensor, sites: Sequence[Site], exchange: Exchange) -> Any:
    """Run the network; at every site ``exchange(index, tensor)`` answers with what goes on in the tensor's place."""
    with uncompiled(module), tapped(sites, exchange):
        return module(x)


@contextlib.contextmanager
def tapped(sites: Sequence[Site], exchange: Exchange) -> Iterator[None]:
    """The same for one pass that is run inside the block."""
    groups: dict[nn.Module, list[tuple[int, Site]]] = {}
    for index, site in enumerate(sites):
        groups.setdefault(site.module, []).append((index, site))

    def wrapper(own: list[tuple[int, Site]]) -> Callable[[Forward], Forward]:
        count = 0

        def wrap(original: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                for index, site in own:
                    if site.occurrence == count:
                        return _exchanged(original, args, kwargs, site, partial(exchange, index))
                return original(*args, **kwargs)

            return forward

        return wrap

    with patched({m: wrapper(own) for m, own in groups.items()}):
        yield


def replay(module: nn.Module, x: Tensor, sites: Sequence[Site], recording: Recording, values: Sequence[Tensor]) -> Any:
    """The network's output when the tensors at the sites have the given values and nothing earlier is computed.

    Args:
        module: the network.
        x: zeros in the shape of its input, with the batch size of ``values``.
        sites: where it is cut, ordered by time.
        recording: from :func:`with_batch_axes`.
        values: one tensor a site.

    Raises:
        SplitError: when the network calls other layers than it did while it was recorded.
    """
    batch, first = x.shape[0], sites[0]
    script = _script(recording, first)
    later = {site.start: index for index, site in enumerate(sites) if index > 0}
    modules = [call.module for call, _ in script] + [site.module for site in sites]
    remaining = [c for c in recording.calls if c.start > first.start and c.module in {s.module for s in sites[1:]}]
    cursor = 0

    def wrapper(target: nn.Module) -> Callable[[Forward], Forward]:
        def wrap(original: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal cursor
                if cursor < len(script):
                    call, role = script[cursor]
                    if call.module is not target:
                        raise SplitError(
                            f"The network called another layer than before (expected {call.name!r}); "
                            "its control flow depends on the picture, so its head cannot be run alone."
                        )
                    cursor += 1
                    if role == "enter":
                        return original(*args, **kwargs)
                    if role == "cut" and first.at_input:
                        return _exchanged(original, args, kwargs, first, lambda raw: values[0])
                    output = map_tensors(call.output, lambda s: s.zeros(batch, values[0]), Spec)
                    return _with_first(output, values[0]) if role == "cut" else output
                if remaining and remaining[0].module is target:
                    call = remaining.pop(0)
                    if call.start in later:
                        index = later[call.start]
                        return _exchanged(original, args, kwargs, sites[index], lambda raw: values[index])
                return original(*args, **kwargs)

            return forward

        return wrap

    with uncompiled(module), patched({m: wrapper(m) for m in modules}):
        return module(x)


def _script(recording: Recording, cut: Site) -> list[tuple[Call, str]]:
    around = {c.start for c in recording.calls if c.start < cut.start and c.end > cut.end}
    script = []
    for call in recording.calls:
        if call.start == cut.start:
            script.append((call, "cut"))
        elif call.start in around:
            script.append((call, "enter"))
        elif call.end < cut.start and call.parent in around:
            script.append((call, "stub"))
    return script


def _exchanged(original: Forward, args: Any, kwargs: Any, site: Site, swap: Callable[[Tensor], Tensor]) -> Any:
    if not site.at_input:
        output = original(*args, **kwargs)
        tensors = tensors_of(output)
        if not tensors:
            raise SplitError(f"Layer {site.name!r} gives no tensor, so its output cannot be the features.")
        return _with_first(output, swap(tensors[0]))
    for position, value in enumerate(args):
        if isinstance(value, Tensor):
            return original(*args[:position], swap(value), *args[position + 1 :], **kwargs)
    for key, value in kwargs.items():
        if isinstance(value, Tensor):
            return original(*args, **{**kwargs, key: swap(value)})
    raise SplitError(f"Layer {site.name!r} takes no tensor, so its input cannot be the features.")


def _with_first(output: Any, value: Tensor) -> Any:
    pending = [value]
    return map_tensors(output, lambda t: pending.pop() if pending else t)
