import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from whylens import store
from whylens.errors import InputError, StoreError, WhylensError
from whylens.store import atomic_file, atomic_folder


def everything_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_file_is_written(tmp_path):
    target = tmp_path / "a" / "b" / "Ergebnis ü.json"
    with atomic_file(target) as temporary:
        assert not target.exists()
        assert temporary.parent == target.parent
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert everything_in(tmp_path) == ["a", "a/b", "a/b/Ergebnis ü.json"]


def test_weights_may_be_read_by_those_who_may_read_any_new_file(tmp_path):
    (tmp_path / "plain.txt").write_text("x")
    usual = (tmp_path / "plain.txt").stat().st_mode
    values = {"a": np.zeros(3, np.float32)}
    with atomic_file(tmp_path / "one.safetensors") as temporary:
        save_file(values, temporary)
    with atomic_folder(tmp_path / "lens") as temporary:
        save_file(values, temporary / "weights.safetensors")
        (temporary / "secret.key").touch(mode=0o600)
    assert (tmp_path / "one.safetensors").stat().st_mode == usual
    assert (tmp_path / "lens" / "weights.safetensors").stat().st_mode == usual
    # What was closed on purpose stays so.
    assert (tmp_path / "lens" / "secret.key").stat().st_mode & 0o777 == 0o600


def test_permissions_are_those_of_any_new_file(tmp_path):
    plain, plain_folder = tmp_path / "plain", tmp_path / "plain folder"
    plain.write_text("x")
    plain_folder.mkdir()
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("x")
    with atomic_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "file").stat().st_mode == plain.stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == plain_folder.stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), InputError("bad"), SystemExit(1)])
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_interrupted_save_changes_nothing(atomic, existing, error, tmp_path):
    target = tmp_path / "deep" / "target"
    if existing:
        with atomic(target) as temporary:
            (temporary / "old" if temporary.is_dir() else temporary).write_text("old")
    before = everything_in(tmp_path)
    with pytest.raises(type(error)) as caught, atomic(target, overwrite=True) as temporary:  # noqa: PT012
        (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
        raise error
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert everything_in(tmp_path) == before
    if existing:
        assert (target / "old" if target.is_dir() else target).read_text() == "old"


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_existing_target_is_refused(atomic, tmp_path):
    target = tmp_path / "target"
    target.write_text("old")
    entered = False
    with pytest.raises(StoreError, match=r"target exists already\. .*overwrite=True"), atomic(target):
        entered = True
    assert not entered
    assert target.read_text() == "old"
    assert everything_in(tmp_path) == ["target"]


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_target_that_appears_meanwhile_is_refused(atomic, tmp_path):
    target = tmp_path / "target"
    with pytest.raises(StoreError, match="exists already"), atomic(target):
        target.write_text("of somebody else")
    assert target.read_text() == "of somebody else"
    assert everything_in(tmp_path) == ["target"]


def test_overwriting(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    for text in ("old", "new"):
        with atomic_file(file, overwrite=True) as temporary:
            temporary.write_text(text)
        with atomic_folder(folder, overwrite=True) as temporary:
            (temporary / text).mkdir()
            (temporary / text / "x").write_text(text)
    assert file.read_text() == "new"
    assert everything_in(tmp_path) == ["file", "folder", "folder/new", "folder/new/x"]


def test_a_file_never_replaces_a_folder_nor_a_folder_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a folder"), atomic_file(tmp_path / "folder", overwrite=True):
        pass
    with pytest.raises(StoreError, match="is a file"), atomic_folder(tmp_path / "file", overwrite=True):
        pass
    assert everything_in(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("error", [OSError(errno.EBUSY, "busy"), KeyboardInterrupt()])
def test_failing_swap_puts_the_old_folder_back(error, tmp_path, monkeypatch):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")
    replace, calls = Path.replace, []

    def failing(self, other):
        calls.append(self)
        if len(calls) == 2:
            raise error
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", failing)
    expected = StoreError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert len(calls) == 3
    assert everything_in(tmp_path) == ["folder", "folder/old"]


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_full_disk_named_by_the_system(atomic, tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "_sync", full)
    with pytest.raises(StoreError, match=r"Could not write .*target: No space left on device\. Nothing was changed"):  # noqa: SIM117
        with atomic(tmp_path / "target") as temporary:
            (temporary / "x" if temporary.is_dir() else temporary).write_text("x")
    assert everything_in(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root on Linux to mount a small disk")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def with_python(path):
    with path.open("wb") as file:
        for _ in range(8):
            file.write(bytes(2**20))


def with_safetensors(path):
    # A writer in Rust: its error is neither an OSError nor does it carry an errno.
    save_file({"x": np.zeros(2**21, np.float32)}, path)


def with_torch(path):
    import torch

    torch.save(torch.zeros(2**21), path)


@pytest.mark.parametrize("write", [with_python, with_safetensors, with_torch])
@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_full_disk(atomic, write, small_disk):
    target = small_disk / "lens"
    with atomic(target) as temporary:
        (temporary / "x" if temporary.is_dir() else temporary).write_text("old")
    with pytest.raises(StoreError, match="No space left on device"), atomic(target, overwrite=True) as temporary:
        write(temporary / "x" if temporary.is_dir() else temporary)
    assert (target / "x" if target.is_dir() else target).read_text() == "old"
    assert [p.name for p in small_disk.iterdir()] == ["lens"]


def test_an_error_on_a_disk_with_room_stays_what_it_is(tmp_path):
    with pytest.raises(ValueError, match="unrelated"), atomic_file(tmp_path / "x"):
        raise ValueError("unrelated")


def test_an_error_about_another_file_names_it(tmp_path):
    with pytest.raises(StoreError, match=r"No such file or directory \(/nowhere/at/all\)"), atomic_file(tmp_path / "x"):
        Path("/nowhere/at/all").read_bytes()


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_parent_that_is_a_file(atomic, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="Could not write"), atomic(tmp_path / "file" / "target"):
        pass
    assert everything_in(tmp_path) == ["file"]


@pytest.fixture
def without_rights():
    """Root reads and writes everywhere, so that it gives up its rights for the length of a test."""
    if not hasattr(os, "geteuid"):
        pytest.skip("permissions of POSIX")
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o555, 0o000])
@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_no_permission(atomic, mode, without_rights):
    with tempfile.TemporaryDirectory() as folder:
        locked = Path(folder) / "locked"
        locked.mkdir()
        locked.chmod(mode)
        for target in (locked / "x", locked / "deeper" / "x"):
            with pytest.raises(StoreError, match=r"Could not write .*x: Permission denied"), atomic(target):
                pass
        locked.chmod(0o700)
        assert everything_in(locked) == []


@pytest.mark.parametrize("name", ["漢" * 80, "x" * 250, "🐈" * 60])
def test_long_names(name, tmp_path):
    with atomic_file(tmp_path / name) as temporary:
        temporary.write_text("x")
    with atomic_folder(tmp_path / f"d{name[1:]}"):
        pass
    assert len(list(tmp_path.iterdir())) == 2


def test_link_is_replaced_and_a_dangling_one_is_not_overlooked(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(StoreError, match="exists already"), atomic_file(link):
        pass
    with atomic_file(link, overwrite=True) as temporary:
        temporary.write_text("x")
    assert not link.is_symlink()
    assert not (tmp_path / "gone").exists()


def test_linked_folder_keeps_what_it_points_at(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    with atomic_folder(tmp_path / "link", overwrite=True) as temporary:
        (temporary / "y").write_text("y")
    assert everything_in(tmp_path) == ["link", "link/y", "real", "real/x"]


def test_one_family_of_errors():
    assert issubclass(StoreError, WhylensError)
    assert issubclass(StoreError, OSError)
