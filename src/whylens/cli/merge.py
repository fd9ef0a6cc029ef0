"""`whylens merge`: put bundles together; the order does not matter, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whylens.cli.bundle import describe, verified
from whylens.cli.console import output


def run(
    files: Annotated[list[Path], typer.Argument(help="Bundles, explanations, records or events.")],
    out: Annotated[Path, typer.Option(help="Bundle to write: a zip where the name ends in .zip, else a folder.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Merge bundles into one. Contradictions are kept and listed; a damaged bundle is refused (exit code 6)."""
    from whylens.records import merge, write_bundle

    bundle = merge(verified(file) for file in files)
    write_bundle(bundle, out, overwrite=overwrite)
    output().print(f"[bold]Bundle written to {out}[/]", soft_wrap=True)
    describe(bundle)
