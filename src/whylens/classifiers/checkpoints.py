"""Weights from files: safetensors, or pickles of tensors alone; common wrappings are taken off."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whylens.errors import InputError, ModelError, StoreError

_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
_PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.")
_FEW = 4


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU, out of wrappings such as ``{"state_dict": ...}``.

    Raises:
        InputError: when there is no such file.
        ModelError: a pickle that needs code to be read, or one without a table of tensors.
        StoreError: a damaged file.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"There is no checkpoint {str(path)!r}.")
    try:
        content = _read(file)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{file} needs code to be read (it holds more than tensors, perhaps a whole pickled network), which could "
            "do anything on this machine. Save the weights alone: torch.save(network.state_dict(), ...) or safetensors. "
            f"({str(error).strip().splitlines()[0][:160]})"
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise ModelError(
                f"{file} is a TorchScript archive, which is code. Save its state_dict() instead."
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StoreError(f"The checkpoint {file} is damaged or no checkpoint: {reason[:200]}") from error
    return _unwrap(content, file)


def fit_state(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> int | None:
    """Load the weights into a network, or say for how many classes it must be built.

    Args:
        module: the network.
        state: from :func:`read_state`; prefixes such as ``module.`` are taken off where they are on every key.
        path: for messages.

    Returns:
        None when the weights are loaded; a number of classes when all that differs is the number of classes.

    Raises:
        ModelError: missing, unexpected or misshapen weights, the first few of each listed.
    """
    expected = module.state_dict()
    state = _without_prefixes(dict(state), expected)
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in expected]
    shapes = {k: (tuple(state[k].shape), tuple(expected[k].shape)) for k in state if k in expected}
    wrong = {k: pair for k, pair in shapes.items() if pair[0] != pair[1]}
    if wrong and not missing and not extra:
        counts = {given[0] if given else 0 for given, _ in wrong.values()}
        own = {built[0] if built else 0 for _, built in wrong.values()}
        same_rest = all(given[1:] == built[1:] and given for given, built in wrong.values())
        if same_rest and len(counts) == len(own) == 1:
            return counts.pop()
    if missing or extra or wrong:
        misshapen = [f"{k} {given} instead of {built}" for k, (given, built) in wrong.items()]
        parts = [_few("missing", missing), _few("unexpected", extra), _few("of another shape", misshapen)]
        raise ModelError(f"The weights in {path} do not fit the architecture: {'; '.join(p for p in parts if p)}.")
    module.load_state_dict(dict(state), strict=False)
    return None


def _read(file: Path) -> Any:
    if file.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _unwrap(content: Any, file: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in _WRAPPINGS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        kind = f"the keys {', '.join(map(repr, list(content)[:6]))}" if isinstance(content, Mapping) else type(content)
        raise ModelError(
            f"{file} holds no table of weights, but {kind}. Accepted: a state dict, alone or under "
            f"{', '.join(map(repr, _WRAPPINGS))}."
        )
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _without_prefixes(state: dict[str, Tensor], expected: Mapping[str, Any]) -> dict[str, Tensor]:
    while state and not (state.keys() & expected.keys()):
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            break
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _few(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"{what}: {', '.join(names[:_FEW])}{more}"
