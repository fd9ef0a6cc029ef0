"""Embeddings kept on disk, found again by the content of phrase or picture, encoder and templates.

Every call that had to compute something writes one new file, named after its keys, by one rename. Files are never
changed, so processes that write at the same time cannot harm one another; a file that cannot be read, or whose
checksum does not hold, is passed over and written again.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whylens.canonical import canonical_json, content_hash
from whylens.encoders.base import Encoder, PictureLike, check_phrases, check_templates
from whylens.errors import InputError, StoreError
from whylens.images import read_picture
from whylens.store import atomic_file

_ENDING = ".embeddings"
_PICTURES_AT_ONCE = 64


class EmbeddingCache:
    """A folder of embeddings.

    Args:
        folder: where; None means ``$WHYLENS_CACHE``, else ``whylens`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
        limit_bytes: when the files together are larger after a write, the ones unused for longest are removed.

    A folder that cannot be written costs the caching, not the result: a warning is given.

    Raises:
        InputError: for a negative limit.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, limit_bytes: int | None = None) -> None:
        if limit_bytes is not None and limit_bytes < 0:
            raise InputError(f"limit_bytes must not be negative; it is {limit_bytes}.")
        self.folder = Path(folder) if folder is not None else default_folder()
        self.limit_bytes = limit_bytes
        # Per subfolder: which file and row holds a key, and which files have been looked into.
        self._rows: dict[Path, dict[str, tuple[Path, int]]] = {}
        self._seen: dict[Path, set[Path]] = {}

    def phrases(self, encoder: Encoder, phrases: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
        """Like :meth:`Encoder.encode_phrases`; only phrases that were never embedded before cost a pass.

        Returns:
            Unit vectors (T, m), fp32, on the CPU.

        Raises:
            InputError: as the encoder.
        """
        check_phrases(phrases)
        check_templates(templates)
        recipe = canonical_json(list(templates))
        keys = [content_hash("phrase", encoder.fingerprint, recipe, phrase) for phrase in phrases]
        text = dict(zip(keys, phrases, strict=True))
        return self._get(
            encoder, "phrases", keys, lambda missing: encoder.encode_phrases([text[key] for key in missing], templates)
        )

    def pictures(self, encoder: Encoder, pictures: Sequence[PictureLike]) -> Tensor:
        """Embed pictures; only those whose bytes were never embedded before are decoded and cost a pass.

        Returns:
            Unit vectors (B, m), fp32, on the CPU.

        Raises:
            PictureError: for a picture that cannot be read.
        """
        found: list[Tensor] = []
        for start in range(0, len(pictures), _PICTURES_AT_ONCE):
            chunk = pictures[start : start + _PICTURES_AT_ONCE]
            keys = [content_hash("picture", encoder.fingerprint, _picture_hash(picture)) for picture in chunk]
            content = dict(zip(keys, chunk, strict=True))

            def encode(missing: list[str], content: dict[str, PictureLike] = content) -> Tensor:
                return encoder.encode_images(torch.stack([encoder.preprocess(content[key]) for key in missing])).cpu()

            found.append(self._get(encoder, "pictures", keys, encode))
        return torch.cat(found) if found else torch.empty(0, encoder.width)

    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(size for _, size, _ in self._files())

    def clear(self) -> int:
        """Remove every file of the cache; returns how many. Other files in the folder are left alone."""
        removed = 0
        for path, _, _ in self._files():
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
        self._rows.clear()
        self._seen.clear()
        return removed

    def _get(self, encoder: Encoder, kind: str, keys: Sequence[str], encode: Callable[[list[str]], Tensor]) -> Tensor:
        if not keys:
            return torch.empty(0, encoder.width)
        folder = self.folder / encoder.fingerprint[:24] / kind
        known = self._lookup(folder, keys, encoder.width)
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            made = encode(missing)
            self._write(folder, missing, made)
            known.update(zip(missing, made, strict=True))
        return torch.stack([known[key] for key in keys])

    def _lookup(self, folder: Path, keys: Sequence[str], width: int) -> dict[str, Tensor]:
        rows = self._rows.setdefault(folder, {})
        seen = self._seen.setdefault(folder, set())
        if any(key not in rows for key in keys):
            for path in sorted(folder.glob(f"*{_ENDING}")):
                if path not in seen:
                    seen.add(path)
                    content = _read(path)
                    if content is not None and content[1].shape[1] == width:
                        for row, key in enumerate(content[0]):
                            rows.setdefault(key, (path, row))
        wanted: dict[Path, list[tuple[str, int]]] = {}
        for key in dict.fromkeys(keys):
            if key in rows:
                path, row = rows[key]
                wanted.setdefault(path, []).append((key, row))
        found: dict[str, Tensor] = {}
        for path, places in wanted.items():
            content = _read(path)
            for key, row in places:
                if content is not None and row < len(content[0]) and content[0][row] == key:
                    found[key] = content[1][row]
                else:
                    del rows[key]
            if content is None:
                seen.discard(path)
            elif self.limit_bytes is not None:
                with contextlib.suppress(OSError):
                    os.utime(path)
        return found

    def _write(self, folder: Path, keys: list[str], embeddings: Tensor) -> None:
        path = folder / f"{content_hash(*keys)[:32]}{_ENDING}"
        data = embeddings.float().cpu().contiguous()
        names = torch.from_numpy(np.frombuffer(bytes.fromhex("".join(keys)), dtype=np.uint8).copy()).view(-1, 32)
        try:
            with atomic_file(path, overwrite=True) as temporary:
                save_file({"keys": names, "embeddings": data}, temporary, {"sha256": _checksum(names, data)})
        except (StoreError, SafetensorError) as error:
            warnings.warn(f"Embeddings could not be kept in {folder}: {error}", stacklevel=4)
            return
        rows = self._rows.setdefault(folder, {})
        rows.update({key: (path, row) for row, key in enumerate(keys)})
        self._seen.setdefault(folder, set()).add(path)
        self._shrink(path)

    def _shrink(self, newest: Path) -> None:
        if self.limit_bytes is None:
            return
        files = sorted(self._files(), key=lambda file: file[2])
        total = sum(size for _, size, _ in files)
        for path, size, _ in files:
            if total <= self.limit_bytes:
                break
            if path != newest:
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= size

    def _files(self) -> list[tuple[Path, int, int]]:
        files = []
        for path in self.folder.glob(f"*/*/*{_ENDING}"):
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((path, status.st_size, status.st_mtime_ns))
        return files


def default_folder() -> Path:
    """``$WHYLENS_CACHE/embeddings``, else ``whylens/embeddings`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("WHYLENS_CACHE")
    if own:
        return Path(own).expanduser() / "embeddings"
    shared = os.environ.get("XDG_CACHE_HOME")
    base = Path(shared) if shared and Path(shared).is_absolute() else Path("~/.cache").expanduser()
    return base / "whylens" / "embeddings"


def _picture_hash(picture: PictureLike) -> str:
    if isinstance(picture, str | os.PathLike):
        with contextlib.suppress(OSError):
            return content_hash(Path(picture).read_bytes())
    if isinstance(picture, bytes):
        return content_hash(picture)
    return read_picture(picture).sha256


def _read(path: Path) -> tuple[list[str], Tensor] | None:
    """Keys and embeddings of a file, or None when it is gone, damaged or of another kind."""
    try:
        with safe_open(path, framework="pt") as file:
            names, data = file.get_tensor("keys"), file.get_tensor("embeddings")
            checksum = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError, ValueError, RuntimeError):
        return None
    if names.ndim != 2 or data.ndim != 2 or len(names) != len(data) or checksum != _checksum(names, data):
        return None
    return [bytes(row).hex() for row in names.numpy()], data


def _checksum(names: Tensor, data: Tensor) -> str:
    return content_hash(names.numpy(), data.numpy())
