"""The contract of map methods: what is validated, what is restored, how a batch is split, what a map costs."""

from __future__ import annotations

import contextlib
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from whylens.classifiers.execution import as_written
from whylens.classifiers.pictures import check_pictures
from whylens.classifiers.precision import has_bf16
from whylens.classifiers.quiet import quiet
from whylens.errors import InputError, ModelError, WhylensError
from whylens.maps.batching import in_batches, out_of_memory
from whylens.maps.view import Ledger, View
from whylens.randomness import picture_hash
from whylens.types import HeatMap

if TYPE_CHECKING:
    from whylens.classifiers import Classifier

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class MapMethod(ABC):
    """Base of map methods: keyword-only settings stored unchanged, the work in :meth:`attribute`.

    Attributes:
        name: registered name.
        deterministic: whether batches of different size must give the same map up to rounding (1e-5 of its range);
            maps that are optimised agree in rank only.
        depends_on_target: whether the class that is asked about matters; controls such as an edge detector say False.
        exact_at: the batch size at which an optimised map is defined, or None; ``check_map_method`` does not
            compare other batch sizes then.
    """

    name: ClassVar[str]
    deterministic: ClassVar[bool] = True
    depends_on_target: ClassVar[bool] = True

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as given."""
        return dict(vars(self))

    @property
    def protocol(self) -> str:
        """Id of the exact procedure, with the settings that are not the default: ``rise{masks=500}@1``."""
        return f"{self.name}{self.changed()}@1"

    def changed(self, *but: str) -> str:
        """Settings that are not the default, in braces, for the protocol's id; ``""`` where all are.

        Args:
            but: settings that the id tells in another way.
        """

        def text(value: Any) -> str:
            # A record that is read again has lists where tuples were given.
            return "+".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)

        defaults = {p.name: text(p.default) for p in inspect.signature(type(self)).parameters.values()}
        texts = {name: text(value) for name, value in self.settings.items() if name not in but}
        changed = [f"{name}={value}" for name, value in texts.items() if defaults.get(name, value) != value]
        return f"{{{','.join(changed)}}}" if changed else ""

    @property
    def exact_at(self) -> int | None:
        """See the class."""
        return None

    @property
    def rows_per_picture(self) -> int:
        """Rows of the network's batch that one picture needs at once: batches of pictures are that much smaller."""
        return 1

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"

    def __call__(
        self,
        classifier: Classifier,
        images: Tensor,
        targets: Tensor | None = None,
        *,
        contrasts: Tensor | None = None,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> list[HeatMap]:
        """Maps of a batch of pictures.

        Args:
            classifier: the classifier. Its network is in evaluation mode and frozen while the method works; mode,
                ``requires_grad`` and ``.grad`` are as before afterwards, also after an exception.
            images: (B, C, H, W) float in [0, 1].
            targets: (B,) class indices; the predicted classes by default.
            contrasts: (B,) class indices to explain against: the score is then the difference of the two logits.
            seed: of the random draws, which also depend on each picture's content and on nothing else.
            batch_size: pictures at once; by default found automatically, halved when memory runs out and remembered.

        Returns:
            One map for each picture, (H, W) float32, higher = more important; ``passes`` counts one for a forward and
            backward of one picture and half for a forward alone.

        Raises:
            InputError: for settings, classes, shapes or values that cannot be used.
            ModelError: when the network cannot be explained by this method, or a gradient or map is not finite.
        """
        self.validate()
        check_pictures(images, classifier.channels)
        if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
            raise InputError(f"batch_size must be a whole number of at least 1, or None; it is {batch_size!r}.")
        if not len(images):
            return []
        classifier = _unwrapped(classifier)
        with _working(classifier.module), _explained(classifier, images):
            view = self._view(classifier, images, targets, contrasts, seed)
            return self._in_batches(view, batch_size)

    def validate(self) -> None:  # noqa: B027 (methods without settings have nothing to check)
        """Check the settings.

        Raises:
            InputError: for one that is out of range.
        """

    @abstractmethod
    def attribute(self, view: View) -> Tensor:
        """Maps (B, H, W) of the view's pictures, on any device; higher = more important.

        Called with gradients enabled, the network in evaluation mode and frozen. Passes are counted by
        :meth:`View.score` and :meth:`View.logits`; what is spent otherwise is reported with :meth:`View.count`.
        """

    def _view(
        self, classifier: Classifier, images: Tensor, targets: Tensor | None, contrasts: Tensor | None, seed: int
    ) -> View:
        x = images.detach().to(classifier.device, torch.float32)
        if x.is_inference():
            x = x.clone()
        classes = len(classifier.class_names)
        hashes = tuple(picture_hash(picture) for picture in x)
        blank = torch.zeros(len(x), dtype=torch.long, device=x.device)
        view = View(classifier, x, blank, None, hashes, seed, Ledger.empty(len(x)))
        if targets is None:
            with torch.no_grad():
                logits = view.logits(x)
            if not bool(torch.isfinite(logits).all()):
                raise ModelError("The network gives NaN or infinite logits for these pictures.")
            chosen = logits.argmax(1)
        else:
            chosen = _indices(targets, "target", len(x), classes, x.device)
        against = None if contrasts is None else _indices(contrasts, "contrast", len(x), classes, x.device)
        if against is not None and bool((against == chosen).any()):
            same = int(chosen[against == chosen][0])
            raise InputError(f"Target and contrast are the same class, {same}; a contrast must be another class.")
        # The predicted class above is that of the network's own precision.
        precision = getattr(self, "precision", "float32")
        return View(classifier, x, chosen, against, hashes, seed, view.ledger, precision)

    def _in_batches(self, view: View, batch_size: int | None) -> list[HeatMap]:
        started = time.perf_counter()

        def run(start: int, stop: int) -> tuple[Tensor, Ledger]:
            part = view.select(start, stop)
            return self._checked(self.attribute(part), part), part.ledger

        results: list[HeatMap] = []
        lowered = view.precision == "auto" and has_bf16(view.device)
        batches = in_batches(
            run,
            len(view),
            module=view.classifier.module,
            key=(type(self), repr(self.settings)),
            pixels=view.size[0] * view.size[1] * max(1, self.rows_per_picture),
            device=view.device,
            batch_size=batch_size,
        )
        for start, stop, (maps, ledger) in batches:
            seconds, started = time.perf_counter() - started, time.perf_counter()
            for i, array in zip(range(start, stop), maps.numpy(), strict=True):
                notes = list(ledger.notes[i - start])
                if lowered:
                    notes.append('The network ran in bfloat16, which precision="auto" takes on this device.')
                if array.size > 1 and float(array.min()) == float(array.max()):
                    notes.append(
                        "The map is the same everywhere: this method finds no pixel more important than others."
                    )
                results.append(
                    HeatMap(
                        method=self.name,
                        protocol=self.protocol,
                        settings=self.settings,
                        target=int(view.targets[i]),
                        contrast=None if view.contrasts is None else int(view.contrasts[i]),
                        array=array.copy(),
                        passes=view.ledger.passes[i] + ledger.passes[i - start],
                        seconds=seconds / (stop - start),
                        notes=tuple(notes),
                    )
                )
        return results

    def _checked(self, maps: Tensor, view: View) -> Tensor:
        expected = (len(view), *view.size)
        if not isinstance(maps, Tensor) or tuple(maps.shape) != expected:
            shape = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ModelError(f"{self.name} made maps of the shape {shape}; they must be {expected}.")
        maps = maps.detach().to("cpu", torch.float32)
        bad = ~torch.isfinite(maps).flatten(1).all(1)
        if bool(bad.any()):
            raise ModelError(
                f"{self.name}: the maps of {int(bad.sum())} of {len(bad)} pictures have NaN or infinite values. "
                "Non-finite gradients cause this; try the network in float32."
            )
        return maps


@contextlib.contextmanager
def _working(module: nn.Module) -> Iterator[None]:
    with quiet(module), torch.inference_mode(False), torch.enable_grad(), as_written(module):
        yield


@contextlib.contextmanager
def _explained(classifier: Classifier, images: Tensor) -> Iterator[None]:
    """Errors of the network for pictures of another size become sentences."""
    try:
        yield
    except WhylensError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        size = (images.shape[-2], images.shape[-1])
        if size == classifier.size or out_of_memory(error):
            raise
        raise InputError(
            f"The network cannot take pictures of {size[0]} x {size[1]} pixels; it was wrapped for "
            f"{classifier.size[0]} x {classifier.size[1]}. Classifier.preprocess makes pictures of that size. ({error})"
        ) from error


def _unwrapped(classifier: Classifier) -> Classifier:
    """A classifier of the network inside a data-parallel one: hooks and modes do not reach its copies."""
    if not isinstance(classifier.module, _WRAPPERS):
        return classifier
    layer = classifier.layer
    return type(classifier)(
        classifier.module.module,
        preprocessing=classifier.preprocessing,
        class_names=classifier.class_names,
        features=None if layer is None else layer.removeprefix("module."),
        link=classifier.link,
        name=classifier.name,
        source=classifier.source,
    )


def _indices(classes: Tensor, what: str, count: int, accepted: int, device: torch.device) -> Tensor:
    indices = torch.as_tensor(classes).to(device)
    if tuple(indices.shape) != (count,) or indices.is_floating_point() or indices.dtype == torch.bool:
        raise InputError(
            f"There must be one {what} index for each of the {count} pictures; these have the shape "
            f"{tuple(indices.shape)} and type {indices.dtype}."
        )
    bad = indices[(indices < 0) | (indices >= accepted)]
    if len(bad):
        raise InputError(f"There is no class {int(bad[0])} to be the {what}; accepted are 0 to {accepted - 1}.")
    return indices.long()
