"""`whylens bundle`: pack an explanation to be passed on, and sign statements about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whylens.cli.console import output
from whylens.cli.verify import DOES_NOT_VERIFY

if TYPE_CHECKING:
    from whylens.records import Bundle, Event, Record


def run(
    file: Annotated[
        Path, typer.Argument(help="An explanation (.json, .html or folder), a record, an event or a bundle.")
    ],
    out: Annotated[Path, typer.Option(help="Bundle to write: a zip where the name ends in .zip, else a folder.")],
    picture: Annotated[
        Path | None, typer.Option(help="Also pack the original picture file, where it may be passed on.")
    ] = None,
    sign: Annotated[str | None, typer.Option(help="Sign with this key: says that you created the record.")] = None,
    review: Annotated[
        str | None, typer.Option(help="With --sign: says instead that you reviewed it, with this note.")
    ] = None,
    superseded_by: Annotated[
        Path | None, typer.Option(help="With --sign: says instead that the record in this file takes its place.")
    ] = None,
    record: Annotated[str | None, typer.Option(help="Which record is signed, where there are several.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Pack record, result and arrays into one bundle; nothing of the picture's file goes in unless you say so."""
    from whylens.records import RecordError, with_picture, write_bundle
    from whylens.records.reading import read_bytes

    if (review is not None or superseded_by is not None or record is not None) and sign is None:
        raise RecordError("--review, --superseded-by and --record belong to a signed statement: give --sign KEY too.")
    if review is not None and superseded_by is not None:
        raise RecordError("Give either --review or --superseded-by; each is a statement of its own.")
    bundle = verified(file)
    if picture is not None:
        bundle = with_picture(bundle, read_bytes(picture, 2**28))
    if sign is not None:
        bundle = bundle.with_events(_statement(bundle.record(record), sign, review, superseded_by))
        if superseded_by is not None:
            bundle = bundle | verified(superseded_by)
    write_bundle(bundle, out, overwrite=overwrite)
    output().print(f"[bold]Bundle written to {out}[/]", soft_wrap=True)
    describe(bundle)


def verified(file: Path) -> Bundle:
    """The content of a file as a bundle; leaves with exit code 6, saying why, where it does not verify."""
    from whylens.cli.console import errors
    from whylens.records import RecordError, verify

    found = verify(file, any_layout=True)
    if not found.ok:
        for failure in found.failures:
            errors().print(f"✗ {file.name}, {failure.place}: {failure.message}", markup=False, soft_wrap=True)
        errors().print(f"{file} does not verify, so nothing was written.", markup=False, soft_wrap=True)
        raise typer.Exit(DOES_NOT_VERIFY)
    if found.bundle is None:
        raise RecordError(f"{file} holds nothing that could be bundled.")
    return found.bundle


def describe(bundle: Bundle) -> None:
    """Print what a bundle holds, its conflicts included."""
    say = output().print
    for record in bundle.records.values():
        kinds = [e.kind for e in bundle.events_of(record.sha256)]
        counted = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds)) or "no statements"
        say(f"{record.id}  ({counted})", markup=False, soft_wrap=True)
    for conflict in bundle.conflicts():
        say(f"Conflict, both sides kept: {conflict.message}", markup=False, soft_wrap=True)
        for name in conflict.names:
            say(f"    {name}", markup=False, soft_wrap=True)


def _statement(record: Record, key: str, review: str | None, superseded_by: Path | None) -> Event:
    from whylens.records import Event, signing_key
    from whylens.records.events import CREATED, REVIEWED, SUPERSEDED

    signer = signing_key(key)
    if review is not None:
        return Event.make(REVIEWED, record.sha256, signer, details={"note": review})
    if superseded_by is not None:
        successor = verified(superseded_by).record()
        return Event.make(SUPERSEDED, record.sha256, signer, details={"by": successor.sha256})
    return Event.make(CREATED, record.sha256, signer)
