"""Atomic saving: a temporary name beside the target, then one rename."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from whylens.errors import StoreError, WhylensError

# Writers in Rust and C++ raise errors of their own. Rust names the errno in the text; the others do not, so that one
# which failed where less room than this is left is taken to have filled the disk.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_FULL_DISK_BYTES = 2**20


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path; when the block ends without an error it becomes ``path``, else it is removed.

    Missing parent folders are made, and removed again after an error.

    Raises:
        StoreError: when ``path`` exists and ``overwrite`` is false, when it is a folder, or when it cannot be written
            (disk full, no permission).
    """
    target = Path(path)
    temporary: Path | None = None
    made: list[Path] = []
    try:
        _refuse(target, overwrite)
        if target.is_dir():
            raise StoreError(f"{target} is a folder, so that no file can be written under that name.")
        made = _make_parents(target)
        temporary = _beside(target, ".part")
        # Exclusive, and with the permissions that the process gives to every new file.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        usual = temporary.stat().st_mode
        yield temporary
        _open_weights(temporary, target.suffix, usual)
        _sync(temporary)
        _refuse(target, overwrite)
        temporary.replace(target)
        _sync_folder(target.parent)
        made = []
    except Exception as error:
        _raise_explained(error, target)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        _remove_empty(made)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Like :func:`atomic_file` for a folder: fill the yielded folder; it takes the target's name at the end.

    What stood under the name is moved aside first, put back if the swap does not succeed, and deleted after it.

    Raises:
        StoreError: as :func:`atomic_file`; also when ``path`` is a file.
    """
    target = Path(path)
    temporary: Path | None = None
    retired: Path | None = None
    made: list[Path] = []
    try:
        _refuse(target, overwrite)
        if target.exists() and not target.is_dir():
            raise StoreError(f"{target} is a file, so that no folder can be written under that name.")
        made = _make_parents(target)
        temporary = _beside(target, ".part")
        temporary.mkdir()
        yield temporary
        usual = temporary.stat().st_mode & 0o666
        for file in temporary.rglob("*"):
            if file.is_file():
                _open_weights(file, file.suffix, usual)
                _sync(file)
        _refuse(target, overwrite)
        if target.exists() or target.is_symlink():
            retired = _beside(target, ".old")
            target.replace(retired)
        temporary.replace(target)
        _sync_folder(target.parent)
        made = []
    except Exception as error:
        _raise_explained(error, target)
    finally:
        # Also after a KeyboardInterrupt between the two renames.
        if retired is not None and not target.exists():
            with contextlib.suppress(FileNotFoundError):
                retired.replace(target)
        for leftover in (temporary, retired):
            if leftover is not None:
                _remove(leftover)
        _remove_empty(made)


def _refuse(target: Path, overwrite: bool) -> None:
    if not overwrite and (target.exists() or target.is_symlink()):
        raise StoreError(
            f"{target} exists already. Choose another name, or allow overwriting "
            "(overwrite=True, or --overwrite on the command line)."
        )


def _raise_explained(error: Exception, target: Path) -> None:
    """Raise a StoreError for a failure of the file system, and any other error as it is."""
    if isinstance(error, WhylensError):
        raise error
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    elif number := _RUST_ERROR.search(str(error)):
        reason = os.strerror(int(number[1]))
    elif _free_bytes(target) < _FULL_DISK_BYTES:
        reason = os.strerror(errno.ENOSPC)
    else:
        raise error
    other = getattr(error, "filename", None)
    about = f" ({other})" if other and not str(other).startswith(str(target.parent)) else ""
    raise StoreError(f"Could not write {target}: {reason}{about}. Nothing was changed under that name.") from error


def _free_bytes(target: Path) -> int:
    for folder in target.absolute().parents:
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return _FULL_DISK_BYTES


def _beside(target: Path, ending: str) -> Path:
    # Forty characters are at most 160 bytes, which leaves room under the usual limit of 255.
    return target.parent / f".{target.name[:40]}.{secrets.token_hex(6)}{ending}"


def _make_parents(target: Path) -> list[Path]:
    """Make the missing parent folders; the ones that were made, innermost first."""
    missing = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _open_weights(path: Path, suffix: str, usual: int) -> None:
    """Give weights the permissions of every other file: safetensors writes them for their owner alone."""
    if suffix == ".safetensors":
        path.chmod(usual & 0o777)


def _sync(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _sync_folder(path: Path) -> None:
    # Not every system can open or sync a folder; the rename itself has happened.
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
