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
    x = torch.rand(2, 3, *classifier.size, generator=torch_generator(0, "doctor")).to(classifier.device)
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


def _hooks(classifier: Classifier) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in classifier.module.modules()
    )
