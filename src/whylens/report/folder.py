"""An explanation as a folder: page, record, arrays and picture."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save as safetensors_bytes

from whylens.errors import StoreError
from whylens.registry import register_writer
from whylens.report.figures import png_bytes
from whylens.report.html import render_html
from whylens.report.record import RECORD_NAME, encode, record_json
from whylens.store import atomic_folder
from whylens.types import Explanation

PAGE_NAME, ARRAYS_NAME, PICTURE_NAME, SUMS_NAME = (
    "explanation.html",
    "arrays.safetensors",
    "picture.png",
    "SHA256SUMS",
)


@register_writer("")
def write_folder(explanation: Explanation, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a folder, atomically: explanation.html, explanation.json, arrays.safetensors and picture.png.

    The arrays are ``picture`` (H, W, 3) uint8, ``map/NAME`` (H, W) for each heat map, ``phrase_map/METHOD/PHRASE``
    (h, w) for each map of a phrase and ``concept_map/METHOD/LATENT`` (H, W) for each of a concept; the record has their sha256, and ``SHA256SUMS`` that of every file (``sha256sum -c`` reads it, too).

    Raises:
        StoreError: when ``path`` exists and ``overwrite`` is false, or cannot be written;
            also when it holds anything but such a report, since overwriting a folder replaces it.
    """
    target = Path(path)
    _keep_strangers(target)
    arrays = {"picture": np.ascontiguousarray(explanation.picture)}
    arrays |= {f"map/{name}": np.ascontiguousarray(heat.array) for name, heat in explanation.maps.items()}
    for kind, part in (("phrase_map", explanation.phrase_maps), ("concept_map", explanation.concept_maps)):
        arrays |= {
            f"{kind}/{method}/{name}": np.ascontiguousarray(array)
            for method, maps in part.items()
            for name, array in maps.items()
        }
    files = {
        PAGE_NAME: encode(render_html(explanation)),
        RECORD_NAME: encode(record_json(explanation)),
        ARRAYS_NAME: safetensors_bytes(arrays),
        PICTURE_NAME: png_bytes(explanation.picture),
    }
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    files[SUMS_NAME] = sums.encode("ascii")
    with atomic_folder(target, overwrite=overwrite) as temporary:
        for name, data in files.items():
            (temporary / name).write_bytes(data)
    return target


def _keep_strangers(target: Path) -> None:
    ours = {PAGE_NAME, RECORD_NAME, ARRAYS_NAME, PICTURE_NAME, SUMS_NAME}
    strangers = sorted(p.name for p in target.iterdir() if p.name not in ours) if target.is_dir() else []
    if strangers:
        raise StoreError(
            f"{target} exists and holds other files, for example {strangers[0]!r}. "
            "Choose a new folder, or one that holds only an earlier report."
        )
