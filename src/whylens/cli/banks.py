"""`whylens banks`: look into concept banks."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from whylens.cli.console import output


def run(
    bank: Annotated[
        str | None, typer.Argument(help="A bank's name, a file (txt, CSV, JSON), or several joined by '+'.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Print the phrases of one group.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Also say how many phrases this encoder can read, such as builtin:tiny.")
    ] = None,
) -> None:
    """List the built-in concept banks, or the groups and phrases of one."""
    from whylens.banks import list_banks, load_bank

    if bank is None:
        for name in list_banks():
            output().print(f"{name}  ({len(load_bank(name))} phrases)", markup=False)
        return
    phrases = load_bank(bank)
    if group is not None:
        phrases = phrases.include([group])
        for phrase in phrases.phrases:
            output().print(phrase, markup=False)
    else:
        output().print(f"[bold]{len(phrases)} phrases[/] in {len(set(phrases.groups))} groups")
        for name, count in sorted(Counter(phrases.groups).items()):
            examples = [p for p, g in zip(phrases.phrases, phrases.groups, strict=True) if g == name][:3]
            output().print(f"{name:28s} {count:5d}   {', '.join(examples)}", markup=False)
    if encoder is not None:
        from whylens.encoders import load_encoder

        known = load_encoder(encoder).coverage(phrases.phrases)
        output().print(
            f"{encoder} reads {sum(known)} of {len(known)} phrases ({sum(known) / len(known):.0%}).", markup=False
        )
