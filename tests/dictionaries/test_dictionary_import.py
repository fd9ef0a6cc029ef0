from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionary_worlds import toy
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from whylens.dictionaries import import_dictionary
from whylens.errors import InputError, StoreError


def state(width: int = 8, latents: int = 30, multiplier: float = 0.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "encoder.final_block.0.weight": torch.randn(latents, width, generator=generator),
        "encoder.final_block.0.bias": torch.randn(latents, generator=generator) * 0.1,
        "dictionary._weights": 3 * torch.randn(latents, width, generator=generator),
        "dictionary.multiplier": torch.tensor(multiplier),
    }


def slow(weights: dict[str, Tensor], x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Codes and reconstructions as the package defines them."""
    pre = x @ weights["encoder.final_block.0.weight"].T + weights["encoder.final_block.0.bias"]
    best = pre.relu().topk(k, 1)
    codes = torch.zeros_like(pre).scatter(1, best.indices, best.values)
    rows = normalize(weights["dictionary._weights"], dim=1) * weights["dictionary.multiplier"].exp()
    return codes, codes @ rows


@pytest.mark.parametrize("multiplier", [0.0, 0.7])
def test_topk_autoencoders_are_imported(multiplier: float, tmp_path: Path) -> None:
    weights = state(multiplier=multiplier)
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(1))
    codes, again = slow(weights, x, 5)
    bare, wrapped, plain = tmp_path / "a.pt", tmp_path / "b.pth", tmp_path / "c.safetensors"
    torch.save(weights, bare)
    arguments = argparse.Namespace(model="resnet18", top_k=5)
    torch.save({"model_state_dict": weights, "args": arguments, "input_dim": 8, "nb_concepts": 30, "top_k": 5}, wrapped)
    save_file(weights, plain)
    for source in (weights, bare, plain):
        dictionary = import_dictionary(source, k=5)
        torch.testing.assert_close(dictionary(x), again, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(dictionary.encode(x), codes * torch.tensor(multiplier).exp(), atol=1e-5, rtol=1e-5)
    classifier = toy().at("act")
    found = import_dictionary(wrapped, classifier=classifier)
    assert (found.settings.k, found.layer, found.classifier_fingerprint) == (5, "act", classifier.fingerprint)
    found.check(classifier)


def test_bias_free_autoencoders_are_imported() -> None:
    generator = torch.Generator().manual_seed(2)
    decoder = normalize(torch.randn(20, 6, generator=generator), dim=1)
    weights = {
        "encoder.weight": torch.randn(20, 6, generator=generator),
        "decoder.weight": decoder.T,
        "k": torch.tensor(4),
    }
    dictionary = import_dictionary(weights)
    assert dictionary.homogeneous
    assert dictionary.settings.k == 4
    x = torch.randn(5, 6, generator=generator)
    torch.testing.assert_close(dictionary.encode(x, pre=True), x @ weights["encoder.weight"].T)
    torch.testing.assert_close(dictionary.decoder, decoder)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def test_pickles_that_could_run_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model_state_dict": state(), "extra": Harmful()}, tmp_path / "bad.pt")
    with pytest.raises(StoreError, match="could run code"):
        import_dictionary(tmp_path / "bad.pt", k=5)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: import_dictionary(state()), "give k"),
        (lambda: import_dictionary({"weight": torch.zeros(2, 2)}, k=1), "no known dictionary.*found weight"),
        (
            lambda: import_dictionary({**state(), "encoder.final_block.1.weight": torch.ones(30)}, k=5),
            "linear encoders",
        ),
        (lambda: import_dictionary({**state(), "dictionary._weights": torch.ones(7, 8)}, k=5), "do not fit"),
        (lambda: import_dictionary(state(width=9), k=5, classifier=toy()), "width 9"),
        (lambda: import_dictionary("nowhere.pt", k=5), "no checkpoint"),
    ],
)
def test_other_checkpoints_are_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(StoreError):
        import_dictionary(tmp_path / "x.pt", k=5)


def test_codes_equal_the_packages_own() -> None:
    package = None
    # It needs packages of its own to be imported at all, and old releases of some of them.
    with contextlib.suppress(Exception):
        from overcomplete.sae import TopKSAE as package  # noqa: N813
    if package is None:
        pytest.skip("the package overcomplete cannot be imported here")
    torch.manual_seed(3)
    reference = package(8, 40, top_k=6)
    x = torch.randn(25, 8)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        _, codes, again = reference(x)
    dictionary = import_dictionary(reference.state_dict(), k=6)
    torch.testing.assert_close(dictionary.encode(x), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dictionary(x), again, atol=1e-5, rtol=1e-5)
