"""`whylens key`: make, list and show the keys that sign statements about records."""

from __future__ import annotations

from typing import Annotated

import typer

from whylens.cli.console import output

app = typer.Typer(no_args_is_help=True, help="Make, list and show the keys that sign statements about records.")


@app.command()
def new(name: Annotated[str, typer.Argument(help="Its name in your key folder, such as your own.")]) -> None:
    """Make a key pair; the private half is readable by you only and never leaves its folder."""
    from whylens.records import config_folder, new_key

    key = new_key(name)
    say = output().print
    say(f"[bold]Key {name!r} made[/] in {config_folder() / 'keys'}", soft_wrap=True)
    say(f"Public key, to give to those who check your signatures: {key.hex}", markup=False, soft_wrap=True)


@app.command("list")
def list_() -> None:
    """List the keys: name and public key."""
    from whylens.records import config_folder, list_keys

    keys = list_keys()
    for key in keys:
        output().print(f"{key.name:24s} {key.hex}", markup=False, soft_wrap=True)
    if not keys:
        output().print(
            f"No keys in {config_folder() / 'keys'}. `whylens key new NAME` makes one.", markup=False, soft_wrap=True
        )


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of the key.")]) -> None:
    """Print a public key, and nothing else."""
    from whylens.records import public_key

    output().print(public_key(name).hex, markup=False, soft_wrap=True)
