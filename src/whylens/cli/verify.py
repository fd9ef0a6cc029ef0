"""`whylens verify`: does a record, an explanation or a bundle still say what it said?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whylens.cli.console import errors, output

if TYPE_CHECKING:
    from whylens.records import Record, Repetition, Verification

DOES_NOT_VERIFY, REPEATED_WITH_DIFFERENCE = 6, 7


def run(
    file: Annotated[
        Path, typer.Argument(help="A record, an explanation (.json, .html or folder), an event or a bundle.")
    ],
    id: Annotated[
        str | None, typer.Option("--id", help="The id, short id or sha256 that its record must have.")
    ] = None,
    signed_by: Annotated[
        str | None, typer.Option(help="A key that must have signed: a name in your key folder, or 64 hex digits.")
    ] = None,
    any_layout: Annotated[
        bool, typer.Option("--any-layout", help="Accept the right content re-zipped, re-indented or among other files.")
    ] = False,
    repeat: Annotated[bool, typer.Option("--repeat", help="Also run the explanation again and compare.")] = False,
    lens: Annotated[
        str | None, typer.Option(help="With --repeat: the lens; found among the built-in ones by default.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="With --repeat: the picture, where the bundle has none.")] = None,
    record: Annotated[str | None, typer.Option(help="With --repeat: which record, where there are several.")] = None,
    relative: Annotated[float, typer.Option(min=0, help="With --repeat: relative tolerance of numbers.")] = 1e-3,
    absolute: Annotated[float, typer.Option(min=0, help="With --repeat: absolute tolerance of numbers.")] = 1e-5,
    sign: Annotated[
        str | None, typer.Option(help="With --repeat: sign a statement about the outcome with this key.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With --sign: bundle to write; by default FILE itself, where it is a bundle.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List the checks that passed, too.")] = False,
) -> None:
    """Check every hash and signature. Exit code 0: it verifies; 6: it does not; 7: repeated with a difference."""
    from whylens.records import RecordError, verify

    if not repeat and (lens or picture or record or sign or out):
        raise RecordError("--lens, --picture, --record, --sign and --out belong to --repeat.")
    if out is not None and sign is None:
        raise RecordError("--out writes a signed statement, so it needs --sign KEY.")
    found = verify(file, expected_id=id, signed_by=signed_by, any_layout=any_layout)
    repetition = None
    if repeat and found.ok:
        repetition = _repeat(found, lens, picture, record, relative, absolute)
        if sign is not None:
            _add_event(found, repetition, sign, file, out)
    if as_json:
        output().print_json(json.dumps(_plain(found, repetition), ensure_ascii=False))
    else:
        _show(found, repetition, verbose=verbose)
    if not found.ok:
        raise typer.Exit(DOES_NOT_VERIFY)
    if repetition is not None and not repetition.same:
        raise typer.Exit(REPEATED_WITH_DIFFERENCE)


def _repeat(
    found: Verification, lens: str | None, picture: Path | None, name: str | None, relative: float, absolute: float
) -> Repetition:
    from whylens.records import RecordError, Tolerance, find_lens, repeat

    if found.bundle is None:
        raise RecordError("There is nothing in this file that could be repeated.")
    record: Record = found.bundle.record(name)
    data = None if picture is None else picture.read_bytes() if picture.is_file() else _no_picture(picture)
    with errors().status("Explaining again"):
        tolerance = Tolerance(relative, absolute)
        return repeat(record, found.bundle, find_lens(record, lens), data, tolerance=tolerance)


def _no_picture(picture: Path) -> bytes:
    from whylens.errors import PictureError

    raise PictureError(f"There is no picture {str(picture)!r}.")


def _add_event(found: Verification, repetition: Repetition, key: str, file: Path, out: Path | None) -> None:
    from whylens.records import RecordError, signing_key, write_bundle

    if out is None and found.what != "a bundle":
        raise RecordError("A statement can only be added to a bundle; give --out BUNDLE.zip to make one.")
    if found.bundle is not None:
        bundle = found.bundle.with_events(repetition.event(signing_key(key)))
        write_bundle(bundle, out or file, overwrite=out is None)


def _show(found: Verification, repetition: Repetition | None, *, verbose: bool) -> None:
    from whylens.records import Level

    marks = {Level.PASSED: "[green]✓[/]", Level.REMARK: "[yellow]•[/]", Level.FAILED: "[bold red]✗[/]"}
    say = output().print
    for record in found.records:
        say(f"[bold]{record.id}[/]", soft_wrap=True)
        say(f"  sha256 {record.sha256}", soft_wrap=True)
    for finding in found.findings:
        if finding.level is not Level.PASSED or verbose:
            say(f"{marks[finding.level]} {_escape(finding.place)}: {_escape(finding.message)}", soft_wrap=True)
    for conflict in found.conflicts:
        say(f"[yellow]![/] Conflict, both sides kept: {_escape(conflict.message)}", soft_wrap=True)
        for name in conflict.names:
            say(f"    {_escape(name)}", soft_wrap=True)
    count = sum(f.level is Level.PASSED for f in found.findings)
    if found.ok:
        say(f"[bold green]Verified:[/] {_escape(found.what)}; {count} passed.", soft_wrap=True)
    else:
        say(
            f"[bold red]Does not verify:[/] {_escape(found.what)}; {len(found.failures)} failed, {count} passed.",
            soft_wrap=True,
        )
    if repetition is not None:
        _show_repetition(repetition)


def _show_repetition(repetition: Repetition) -> None:
    say = output().print
    for note in repetition.remarks:
        say(f"[yellow]•[/] {_escape(note)}", soft_wrap=True)
    for difference in repetition.differences:
        say(
            f"[bold red]≠[/] {_escape(difference.place)}: recorded {_escape(difference.recorded)}, "
            f"repeated {_escape(difference.repeated)}",
            soft_wrap=True,
        )
    stated = f"tolerance {repetition.tolerance.relative:g} relative, {repetition.tolerance.absolute:g} absolute"
    if repetition.same:
        say(f"[bold green]Repeated with the same result[/] ({stated}).", soft_wrap=True)
    else:
        say(f"[bold red]Repeated with {len(repetition.differences)} differences[/] ({stated}).", soft_wrap=True)


def _plain(found: Verification, repetition: Repetition | None) -> dict[str, object]:
    plain: dict[str, object] = {
        "what": found.what,
        "verified": found.ok,
        "records": [{"id": r.id, "sha256": r.sha256, "understood": r.understood} for r in found.records],
        "findings": [{"level": f.level.value, "place": f.place, "message": f.message} for f in found.findings],
        "conflicts": [{"message": c.message, "files": list(c.names)} for c in found.conflicts],
    }
    if repetition is not None:
        plain["repeated"] = {
            "same": repetition.same,
            "tolerance": {"relative": repetition.tolerance.relative, "absolute": repetition.tolerance.absolute},
            "differences": [vars(d) for d in repetition.differences],
            "remarks": list(repetition.remarks),
        }
    return plain


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text))
