"""The checks behind `whylens doctor`; each returns a sentence or raises."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from whylens.classifiers import Classifier, load_classifier
from whylens.errors import WhylensError
from whylens.images import read_picture
from whylens.lens import Lens, built_in_lenses
from whylens.randomness import torch_generator
from whylens.store import atomic_file

BCOS_NETWORK = "tiny-imagenet-bcos"
EXACT = 1e-9


def decode_pictures() -> str:
    """Encode a gradient in three formats and read it back."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    array = np.stack([np.tile(ramp, (48, 1))] * 3, 2)
    for name in ("JPEG", "PNG", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, name, quality=95)
        difference = np.abs(read_picture(buffer.getvalue()).array.astype(int) - array).mean()
        if difference > 4:
            raise WhylensError(f"{name} decodes wrongly: mean difference {difference:.1f} of 255. Reinstall pillow.")
    return "JPEG, PNG, WebP"


def write_files() -> str:
    """Write one file atomically into the temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        with atomic_file(Path(folder) / "probe.txt") as path:
            path.write_text("probe", encoding="utf-8")
        return f"in {tempfile.gettempdir()}"


def split_and_hooks(source: str | None, pretrained: bool) -> str:
    """Recompute the logits from the split, follow the gradient, and see that nothing of the model was changed."""
    if source is None:
        names = built_in_lenses()
        if not names:
            raise WhylensError("No built-in lens in this installation; its data files are missing.")
        classifier = load_classifier(f"builtin:{names[0]}")
    else:
        classifier = load_classifier(source, pretrained=pretrained)
    x = torch.rand(2, classifier.channels, *classifier.size, generator=torch_generator(0, "doctor")).to(
        classifier.device
    )
    before = _hooks(classifier)
    with torch.no_grad():
        logits = classifier.logits(x)
        features, together = classifier.features_and_logits(x)
    gap = float((classifier.head(features) - logits).detach().abs().max() / logits.abs().max().clamp(min=1e-6))
    if gap > 1e-3 or not torch.allclose(together, logits, rtol=1e-3, atol=1e-4):
        raise WhylensError(f"head(features(x)) misses logits(x) by {gap:.2g} (relative).")
    probe = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.logits(probe)[:, 0].sum(), probe)
    if not bool(gradient.abs().sum() > 0):
        raise WhylensError("No gradient reaches the picture: the model detaches or runs without gradients.")
    if _hooks(classifier) != before:
        raise WhylensError("Hooks were left on the model.")
    kind = "affine head" if classifier.affine_head is not None else "head is not affine"
    return f"{classifier.name}, features {classifier.width} wide from {classifier.features_name}, {kind}, gap {gap:.1e}"


def built_in_lens() -> str:
    """Load every built-in lens and explain a rendered picture with the first."""
    names = built_in_lenses()
    if not names:
        raise WhylensError("No built-in lens in this installation; its data files are missing.")
    started = time.perf_counter()
    lenses = [Lens.load(name) for name in names]
    loaded = time.perf_counter() - started
    yellow = np.zeros((64, 64, 3), np.uint8)
    yellow[16:48, 16:48] = (230, 200, 40)
    why = lenses[0].explain(yellow)
    return f"{', '.join(names)} in {loaded:.2f} s; a rendered square is explained with {len(why.words)} phrases"


def exact_traces(gaps: list[float]) -> str:
    """Trace random pictures at every layer of the built-in B-cos network, and from the pixels.

    Args:
        gaps: the relative gap of each is appended: what is left open, over the sum of the sizes of all shares.
    """
    from whylens.bcos import pixel_contributions
    from whylens.traces import Fact, completeness_gap
    from whylens.traces.precision import in_double

    name = BCOS_NETWORK
    classifier = load_classifier(f"builtin:{name}")
    x = torch.rand(1, classifier.channels, *classifier.size, generator=torch_generator(0, "doctor traces")).to(
        classifier.device
    )
    dictionaries = [d.layer or "features" for d in Lens.load(name).dictionaries] if name in built_in_lenses() else []
    lens = Lens.load(name) if dictionaries else classifier
    layers = list(dict.fromkeys([*dictionaries, "features", *_stages(classifier)]))
    for layer in layers:
        for mode in ("residual", "replace"):
            gaps.extend(completeness_gap(trace) for trace in Fact(layer=layer, mode=mode)(lens, x))
    with in_double(classifier.module):
        gaps.append(float(pixel_contributions(classifier.module, x.double()).gap.max()))
    if max(gaps) > EXACT:
        raise WhylensError(f"The shares leave {max(gaps):.2g} of their size open; less than {EXACT:g} was expected.")
    return f"{len(layers)} layers and the pixels of {name}, largest gap {max(gaps):.1e} of the shares' sizes (fp64)"


def _stages(classifier: Classifier) -> list[str]:
    return [name for name in ("stem", "stages.1") if name in dict(classifier.module.named_modules())]


def _hooks(classifier: Classifier) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in classifier.module.modules()
    )
