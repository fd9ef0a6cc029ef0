"""An explanation, and keys in a folder of their own."""

from __future__ import annotations

import pytest
from record_zoo import make_explanation

from whylens.records import new_key, signing_key


@pytest.fixture
def explanation():
    return make_explanation()


@pytest.fixture
def config(tmp_path, monkeypatch):
    folder = tmp_path / "config"
    monkeypatch.setenv("WHYLENS_CONFIG", str(folder))
    return folder


@pytest.fixture
def key(config):
    pytest.importorskip("cryptography")
    new_key("ada")
    return signing_key("ada")
