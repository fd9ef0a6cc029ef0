"""`whylens doctor`: versions, devices, and a self-test of everything that can go wrong on a machine."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from whylens.cli.console import errors, output

CORE = ("torch", "torchvision", "numpy", "pillow", "safetensors", "captum", "typer", "rich", "jinja2")
EXTRAS = {"timm": "timm", "transformers": "hf", "open_clip_torch": "clip", "matplotlib": "plot", "scikit-image": "demo"}


def run(
    classifier: Annotated[
        str | None, typer.Option(help="Test this classifier; the first built-in lens's by default.")
    ] = None,
    pretrained: Annotated[bool, typer.Option(help="Load the published weights (may download them).")] = False,
    traces: Annotated[
        bool,
        typer.Option("--traces", help="Test concept traces too; the last line is the B-cos network's gap in fp64."),
    ] = False,
) -> None:
    """Print versions and devices, test hooks and the features/head split, and say what to do about each problem."""
    say = output().print
    say("[bold]Versions[/]")
    say(f"  python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in CORE:
        say(f"  {package} {_version(package) or '[red]missing[/]: pip install --force-reinstall whylens'}")
    for package, extra in EXTRAS.items():
        found = _version(package)
        say(
            f"  {package} {found}"
            if found
            else f"  {package} not installed (optional: pip install 'whylens\\[{extra}]')"
        )

    say("[bold]Devices[/]")
    for line in _devices():
        say(f"  {line}")

    say("[bold]Self-test[/]")
    problems = 0
    gaps: list[float] = []
    for label, check in _checks(classifier, pretrained, gaps if traces else None):
        try:
            with errors().status(label):
                detail = check()
        except Exception as error:
            problems += 1
            say(f"  [red]FAILED[/]  {label}")
            output().print(f"          {type(error).__name__}: {error}", markup=False)
            output().print(f"          {_advice(error)}", markup=False)
        else:
            say(f"  [green]ok[/]      {label}: {detail}")
    say(f"[bold red]{problems} problem(s).[/]" if problems else "[bold green]No problem found.[/]")
    if gaps:
        say(f"{max(gaps):.3e}", highlight=False)
    if problems:
        raise typer.Exit(5)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    lines = [f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    if torch.cuda.is_available():
        lines += [f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    else:
        built = torch.version.cuda
        reason = (
            "this torch is a CPU build"
            if built is None
            else f"torch was built for CUDA {built}, but no usable GPU was found"
        )
        lines.append(f"cuda: no ({reason})")
    lines.append(f"mps: {'yes' if torch.backends.mps.is_available() else 'no'}")
    return lines


def _checks(classifier: str | None, pretrained: bool, gaps: list[float] | None) -> list[tuple[str, Callable[[], str]]]:
    from whylens.cli import selftest

    traces: list[tuple[str, Callable[[], str]]] = []
    if gaps is not None:
        traces.append(("concept traces of the B-cos network add up", lambda: selftest.exact_traces(gaps)))
    return [
        ("pictures can be decoded", selftest.decode_pictures),
        ("files can be written and renamed", selftest.write_files),
        ("features/head split and hooks", lambda: selftest.split_and_hooks(classifier, pretrained)),
        ("built-in lens loads and explains", selftest.built_in_lens),
        *traces,
    ]


def _advice(error: Exception) -> str:
    from whylens.errors import MissingExtraError, ModelError, SplitError, StoreError

    if isinstance(error, MissingExtraError):
        return "What to do: install the extra named above."
    if isinstance(error, SplitError):
        return "What to do: name the layer whose output is the features, with features=... (--features on the command line)."
    if isinstance(error, ModelError):
        return "What to do: check that the model gives logits (B, classes) and that its weights are complete."
    if isinstance(error, (StoreError, PermissionError)):
        return "What to do: free disk space, or set TMPDIR and WHYLENS_CACHE to folders that can be written."
    if isinstance(error, ImportError):
        return (
            f"What to do: reinstall, in the same environment: {sys.executable} -m pip install --force-reinstall whylens"
        )
    return "What to do: run again with `whylens --debug doctor` and report the traceback."
