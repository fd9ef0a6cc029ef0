"""`whylens banks`: look into concept banks, and let a model write one."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from whylens.cli import banks_generate
from whylens.cli.console import output

_DEFAULT = "show"


class _ShowByDefault(TyperGroup):
    """Without a verb of its own, `whylens banks NAME` shows that bank, as `whylens banks show NAME` does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ShowByDefault,
    help="List the built-in concept banks, or the groups and phrases of one; let a model write one (generate).",
)


@app.command(_DEFAULT)
def show(
    bank: Annotated[
        str | None, typer.Argument(help="A bank's name, a file (txt, CSV, JSON), or several joined by '+'.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Print the phrases of one group.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Also say how many phrases this encoder can read, such as builtin:tiny.")
    ] = None,
) -> None:
    """List the built-in concept banks, or the groups and phrases of one; the word `show` may be left out."""
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


app.command("generate")(banks_generate.run)
