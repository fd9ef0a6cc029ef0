"""Keys: owner-only files, never replaced, and loose permissions refused."""

from __future__ import annotations

import os
import stat
import sys

import pytest

from whylens.errors import InputError, MissingExtraError
from whylens.records import KeyStoreError, config_folder, list_keys, new_key, public_key, signing_key
from whylens.records.keys import signature_holds

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")


def test_a_key_signs_and_is_kept_for_its_owner_only(config):
    public = new_key("ada")
    secret, shown = config / "keys" / "ada.key", config / "keys" / "ada.pub"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(secret.parent.stat().st_mode) & 0o077 == 0
    assert shown.read_text() == f"{public.hex}\n"
    signature = signing_key("ada").sign(b"message")
    assert signature_holds(public.hex, signature, b"message")
    assert not signature_holds(public.hex, signature, b"massage")
    assert not signature_holds(new_key("bob").hex, signature, b"message")
    assert list_keys() == [public, public_key("bob")]
    assert public_key(public.hex).name == "ada"
    assert public.hex not in secret.read_text()
    assert "PRIVATE" not in repr(signing_key("ada"))


def test_the_file_is_created_closed_whatever_the_umask(config):
    before = os.umask(0)
    try:
        new_key("ada")
    finally:
        os.umask(before)
    assert stat.S_IMODE((config / "keys" / "ada.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((config / "keys").stat().st_mode) == 0o700


def test_the_standard_check_value():
    # RFC 8032, section 7.1, test 2.
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert signature_holds(public, signature, b"\x72")
    assert not signature_holds(public, signature, b"\x73")


def test_keys_are_never_replaced(config):
    new_key("ada")
    before = (config / "keys" / "ada.key").read_bytes()
    with pytest.raises(KeyStoreError, match="never replaced"):
        new_key("ada")
    assert (config / "keys" / "ada.key").read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622, 0o666])
def test_loose_permissions_are_refused(config, mode):
    new_key("ada")
    (config / "keys" / "ada.key").chmod(mode)
    with pytest.raises(KeyStoreError, match=r"Others may read .* chmod 600"):
        signing_key("ada")


def test_a_folder_that_others_may_write_to_is_refused(config):
    new_key("ada")
    (config / "keys").chmod(0o777)
    with pytest.raises(KeyStoreError, match="Others may write"):
        signing_key("ada")
    with pytest.raises(KeyStoreError, match="Others may write"):
        new_key("bob")


def test_links_and_damage_are_refused(config, tmp_path):
    new_key("ada")
    new_key("bob")
    secret = config / "keys" / "ada.key"
    kept = tmp_path / "elsewhere.key"
    secret.rename(kept)
    with pytest.raises(KeyStoreError, match="no private key"):
        signing_key("ada")
    secret.symlink_to(kept)
    with pytest.raises(KeyStoreError, match="links are refused"):
        signing_key("ada")
    secret.unlink()
    secret.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    secret.chmod(0o600)
    with pytest.raises(KeyStoreError, match="damaged"):
        signing_key("ada")
    secret.write_bytes((config / "keys" / "bob.key").read_bytes())
    with pytest.raises(KeyStoreError, match="does not belong"):
        signing_key("ada")
    (config / "keys" / "ada.pub").write_text("zz")
    with pytest.raises(KeyStoreError, match="damaged"):
        public_key("ada")


@pytest.mark.parametrize("name", ["", "../ada", "a/b", ".hidden", "a b", "ä", "x" * 65, "a\n"])
def test_names_that_no_file_should_have(config, name):
    with pytest.raises(KeyStoreError, match="cannot name a key"):
        new_key(name)
    assert not config.exists()


def test_unknown_keys_are_named_with_the_nearest(config):
    new_key("ada")
    with pytest.raises(InputError, match="Did you mean 'ada'"):
        public_key("adda")


def test_where_keys_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("WHYLENS_CONFIG", str(tmp_path / "a"))
    assert config_folder() == tmp_path / "a"
    monkeypatch.delenv("WHYLENS_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "b"))
    assert config_folder() == tmp_path / "b" / "whylens"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert config_folder() == tmp_path / "c" / ".config" / "whylens"


def test_without_cryptography_the_extra_is_named(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(MissingExtraError, match=r"whylens\[records\]"):
        new_key("ada")
    assert not (config / "keys" / "ada.pub").exists()
