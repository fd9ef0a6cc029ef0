"""Dictionaries trained elsewhere: checkpoints of overcomplete's TopK autoencoder, and of bias-free ones of FaCT."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from whylens.classifiers import Classifier
from whylens.dictionaries.model import Dictionary, Origin
from whylens.dictionaries.settings import DictionarySettings
from whylens.errors import InputError, StoreError

_STATES = ("model_state_dict", "state_dict", "model", "sae")
_TRAINED_ELSEWHERE = "imported"


def import_dictionary(
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    *,
    classifier: Classifier | None = None,
    k: int | None = None,
    pooled: bool = False,
) -> Dictionary:
    """A dictionary from a checkpoint of another program; pickles are read with ``weights_only``, so they run no code.

    Known layouts: ``TopKSAE`` of the package overcomplete with its linear encoder (also untied or tied without
    normalisation layers), bare or in a mapping as TEXTER saves it; and ``encoder.weight`` (K, d) with
    ``decoder.weight`` (d, K), the bias-free TopK of FaCT.

    Args:
        checkpoint: a file of torch or safetensors, or the state dict.
        classifier: at the layer that it was trained on; its fingerprint and layer become the dictionary's. Without it
            nothing can be checked later.
        k: active latents; None: from the checkpoint, which then must say it.
        pooled: it encodes features averaged over positions.

    Raises:
        InputError: another layout, a missing k, or another width than the classifier's.
        StoreError: a file that cannot be read, or holds more than weights.
    """
    content = checkpoint if isinstance(checkpoint, Mapping) else _load(Path(checkpoint))
    state, given = _state_of(content)
    encoder, bias, decoder, factor = _weights(state)
    chosen = k if k is not None else given
    if chosen is None:
        raise InputError("The checkpoint does not say how many latents are active (top_k); give k.")
    if classifier is not None and classifier.width != encoder.shape[1]:
        raise InputError(
            f"The checkpoint encodes features of width {encoder.shape[1]}; the classifier's have {classifier.width}. "
            "Name the layer it was trained on: classifier.at(...)."
        )
    settings = DictionarySettings(
        latents=encoder.shape[0], k=chosen, bias=bool(bias.any()), centre=False, preset=_TRAINED_ELSEWHERE
    )
    # Rows exactly of unit norm; a common factor of theirs goes into the codes.
    return Dictionary(
        encoder * factor,
        normalize(decoder, dim=1),
        settings,
        bias=bias * factor,
        origin=None if classifier is None else Origin.of(classifier, pooled=pooled),
        report={"imported": sorted(state)},
    )


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError(f"There is no checkpoint {str(path)!r}.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # Namespaces of argparse hold plain values and construct nothing.
        with _plain_namespaces():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StoreError(
            f"{path} holds more than weights (reading it could run code), so it is refused. Save its state_dict() and "
            f"import that. ({str(error).splitlines()[0]:.120})"
        ) from error
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be read as a checkpoint: {error!s:.200}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a mapping of weights.")
    return content


def _plain_namespaces() -> AbstractContextManager[object]:
    allow = getattr(torch.serialization, "safe_globals", None)
    if allow is None:  # torch 2.4 only has the lasting form.
        torch.serialization.add_safe_globals([argparse.Namespace])
        return nullcontext()
    made: AbstractContextManager[object] = allow([argparse.Namespace])
    return made


def _state_of(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], int | None]:
    """The weights by name, and the number of active latents where it is said."""
    found = content
    for name in _STATES:
        if isinstance(content.get(name), Mapping):
            found = content[name]
    state = {str(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    k = content.get("top_k", content.get("k", state.get("k")))
    arguments = content.get("args")
    if k is None and isinstance(arguments, argparse.Namespace):
        k = getattr(arguments, "top_k", None)
    return state, None if k is None else int(k)


def _weights(state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encoder (K, d), bias (K,), decoder (K, d), and the factor that multiplies every row of the decoder."""
    if "dictionary._weights" in state:
        decoder = state["dictionary._weights"].float()
        factor = state.get("dictionary.multiplier", torch.tensor(0.0)).float().exp()
        extra = [n for n in state if n.startswith("encoder.") and n not in _OVERCOMPLETE_ENCODER]
        if extra:
            raise InputError(
                f"Only linear encoders can be imported; this one also has {extra[0]!r}"
                + (f" and {len(extra) - 1} more" if len(extra) > 1 else "")
                + " (hidden layers or normalisation)."
            )
        tied = not any(n.startswith("encoder.") and n.endswith("weight") for n in state)
        rows = normalize(decoder, dim=1) * factor
        encoder = rows if tied else state.get("encoder.final_block.0.weight", state.get("encoder.weight"))
        bias = state.get("encoder.final_block.0.bias", state.get("encoder.bias"))
    elif "encoder.weight" in state and "decoder.weight" in state:
        encoder, decoder = state["encoder.weight"], state["decoder.weight"].float().T
        factor = decoder.norm(dim=1).mean()
        if float((decoder.norm(dim=1) / factor - 1).abs().max()) > 1e-3:
            raise InputError("The checkpoint's decoder columns differ in length, so its codes are not comparable.")
        bias = state.get("encoder.bias")
        for name in ("decoder.bias", "b_dec", "bias"):
            if name in state and bool(state[name].any()):
                raise InputError(
                    f"The checkpoint has {name!r}, a bias of the decoder, which this import does not know."
                )
    else:
        raise InputError(
            "This is no known dictionary checkpoint. Expected dictionary._weights and encoder.final_block.0.weight "
            "(overcomplete's TopKSAE), or encoder.weight and decoder.weight (bias-free TopK); found "
            f"{', '.join(sorted(state)[:8]) or 'no weights'}."
        )
    if encoder is None or encoder.shape != decoder.shape:
        shape = None if encoder is None else tuple(encoder.shape)
        raise InputError(f"The checkpoint's encoder {shape} and dictionary {tuple(decoder.shape)} do not fit.")
    return encoder.float(), torch.zeros(len(decoder)) if bias is None else bias.float(), decoder, factor


_OVERCOMPLETE_ENCODER = {
    "encoder.final_block.0.weight",
    "encoder.final_block.0.bias",
    "encoder.weight",
    "encoder.bias",
}
