"""Signing keys: Ed25519, kept in the user's configuration folder, readable by the owner only."""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whylens.errors import missing_extra, unknown_name
from whylens.records.errors import KeyStoreError, shortened

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CONFIG_VARIABLE = "WHYLENS_CONFIG"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PRIVATE, _PUBLIC = ".key", ".pub"


@dataclass(frozen=True)
class PublicKey:
    """A public key in hex (64 digits), with its name in the key folder where it has one."""

    hex: str
    name: str = ""


@dataclass(frozen=True, repr=False)
class SigningKey:
    """A private key that signs; its repr does not show it."""

    public: PublicKey
    _private: Ed25519PrivateKey

    def sign(self, message: bytes) -> str:
        """The signature, in hex."""
        return self._private.sign(message).hex()

    def __repr__(self) -> str:
        return f"SigningKey({self.public.name!r}, {self.public.hex})"


def config_folder() -> Path:
    """``WHYLENS_CONFIG``, or ``whylens`` in ``XDG_CONFIG_HOME``, ``~/.config``, or ``APPDATA`` on Windows."""
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named).expanduser()
    base = os.environ.get("APPDATA") if sys.platform == "win32" else os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "whylens"


def new_key(name: str) -> PublicKey:
    """Make a key pair and keep it; an existing key is never replaced.

    Raises:
        KeyStoreError: for a name that no file can have, one that is taken, or a folder that others may write to.
        MissingExtraError: without ``cryptography``.
    """
    ed25519, serialization, _ = _cryptography()
    folder = _key_folder(_checked_name(name), create=True)
    private = ed25519.Ed25519PrivateKey.generate()
    public = PublicKey(private.public_key().public_bytes_raw().hex(), name)
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # The private key first: its exclusive creation decides which of two simultaneous calls has the name.
    _create(folder / f"{name}{_PRIVATE}", secret, 0o600)
    try:
        _create(folder / f"{name}{_PUBLIC}", f"{public.hex}\n".encode(), 0o644)
    except KeyStoreError:
        (folder / f"{name}{_PRIVATE}").unlink()
        raise
    return public


def list_keys() -> list[PublicKey]:
    """The public keys in the key folder, by name."""
    folder = config_folder() / "keys"
    names = sorted(p.name.removesuffix(_PUBLIC) for p in folder.glob(f"*{_PUBLIC}")) if folder.is_dir() else []
    return [public_key(name) for name in names]


def public_key(name: str) -> PublicKey:
    """The public key of that name; 64 hex digits stand for themselves.

    Raises:
        KeyStoreError: for a damaged file.
        InputError: for an unknown name, with the nearest.
    """
    if re.fullmatch(r"[0-9a-fA-F]{64}", name):
        return PublicKey(name.lower(), _names().get(name.lower(), ""))
    path = config_folder() / "keys" / f"{_checked_name(name)}{_PUBLIC}"
    if not path.is_file():
        raise unknown_name("key", name, [k.name for k in list_keys()], hint=f"`whylens key new {name}` makes one.")
    return PublicKey(_read_public(path), name)


def signing_key(name: str) -> SigningKey:
    """Load a private key to sign with.

    Raises:
        KeyStoreError: when others may read it, it is a link, damaged, or does not belong to the public key.
        InputError: for an unknown name.
        MissingExtraError: without ``cryptography``.
    """
    ed25519, serialization, _ = _cryptography()
    public = public_key(_checked_name(name))
    secret = _read_private(_key_folder(name, create=False) / f"{name}{_PRIVATE}")
    try:
        private = serialization.load_pem_private_key(secret, password=None)
    except (ValueError, TypeError) as error:
        raise KeyStoreError(f"The key {name!r} is damaged: {error}.") from None
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise KeyStoreError(f"The key {name!r} is no Ed25519 key.")
    if private.public_key().public_bytes_raw().hex() != public.hex:
        raise KeyStoreError(f"The private key {name!r} does not belong to the public key beside it.")
    return SigningKey(public, private)


def signature_holds(public_hex: str, signature_hex: str, message: bytes) -> bool:
    """Whether the signature over the message was made with that key.

    Raises:
        MissingExtraError: without ``cryptography``.
    """
    ed25519, _, invalid = _cryptography()
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex)).verify(
            bytes.fromhex(signature_hex), message
        )
    except (invalid, ValueError):
        return False
    return True


def _names() -> dict[str, str]:
    return {key.hex: key.name for key in list_keys()}


def _cryptography() -> tuple[Any, Any, Any]:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise missing_extra("cryptography", "records", "Signing records, and checking signatures,") from None
    return ed25519, serialization, InvalidSignature


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise KeyStoreError(
            f"{shortened(name)} cannot name a key. Accepted: 1 to 64 letters, digits, '.', '_' and '-', "
            "the first a letter or digit."
        )
    return name


def _key_folder(name: str, *, create: bool) -> Path:
    folder = config_folder() / "keys"
    try:
        if create:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise KeyStoreError(
            f"The key folder {folder} cannot be used for {name!r}: {error.strerror or error}."
        ) from error
    if os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o022:
        raise KeyStoreError(f"Others may write to the key folder {folder}. Close it first: chmod 700 '{folder}'")
    return folder


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise KeyStoreError(
            f"There is a key in {path} already; keys are never replaced. Choose another name."
        ) from None
    except OSError as error:
        raise KeyStoreError(f"Could not write {path}: {error.strerror or error}.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise KeyStoreError(f"Could not write {path}: {error.strerror or error}. Nothing was kept.") from error


def _read_private(path: Path) -> bytes:
    try:
        # Opened once and asked through the handle, so that the file checked is the file read; a link is refused.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise KeyStoreError(f"The private key {path} is no regular file.")
            if os.name == "posix":
                if stat.S_IMODE(found.st_mode) & 0o077:
                    raise KeyStoreError(
                        f"Others may read the private key {path} (mode {stat.S_IMODE(found.st_mode):04o}). "
                        f"Close it: chmod 600 '{path}'"
                    )
                if found.st_uid != os.geteuid():
                    raise KeyStoreError(f"The private key {path} belongs to another user.")
            return file.read(16384)
    except FileNotFoundError:
        raise KeyStoreError(
            f"There is no private key {path}; only the public one is here, so it cannot sign."
        ) from None
    except OSError as error:
        raise KeyStoreError(
            f"Could not read the private key {path}: {error.strerror or error} (links are refused)."
        ) from error


def _read_public(path: Path) -> str:
    try:
        text = path.read_bytes()[:1024].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyStoreError(f"The public key {path} cannot be read: {error}.") from None
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise KeyStoreError(f"The public key {path} is damaged; expected 64 hex digits.")
    return text
