"""`whylens methods`: which explanation methods are registered."""

from __future__ import annotations

from typing import Annotated

import typer

from whylens.cli.console import output


def run(
    kind: Annotated[str | None, typer.Option(help="words, map or trace; all of them by default.")] = None,
) -> None:
    """List the explanation methods, your own installed ones included."""
    from rich.table import Table

    from whylens.registry import get_method, list_methods

    table = Table("method", "kind", "what it does", box=None, header_style="bold")
    for name in list_methods(kind):
        entry = get_method(name)
        table.add_row(name, entry.kind, entry.summary)
    output().print(table)
