"""`whylens demo`: two real photographs explained with the built-in lens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whylens.cli.console import output


def run(
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("whylens-demo"),
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
) -> None:
    """Explain photographs of a cup of coffee and of a rocket, which is no class of the built-in lens; write a report."""
    from whylens.errors import missing_extra

    try:
        from skimage import data
    except ImportError:
        raise missing_extra("scikit-image", "demo", "The demo, for its photographs,") from None
    from PIL import Image

    from whylens.cli.folder_run import explain_folder
    from whylens.lens import Lens

    pictures = out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for name in ("coffee", "rocket"):
        file = pictures / f"{name}.png"
        if not file.exists():
            Image.fromarray(getattr(data, name)()).save(file)
    summary = explain_folder(
        Lens.load("tiny-imagenet"), [pictures], out / "report", seed=seed, show=True, overwrite=True
    )
    output().print(f"\n[bold]Report:[/] {summary.index.resolve()}", soft_wrap=True)
