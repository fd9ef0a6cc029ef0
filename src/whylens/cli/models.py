"""`whylens models`: which classifiers, encoders and lenses can be named."""

from __future__ import annotations

from typing import Annotated

import typer

from whylens.cli.console import output


def run(
    pattern: Annotated[str, typer.Argument(help="Wildcard, such as 'resnet*' or 'timm:vit_*'.")] = "*",
    kind: Annotated[str, typer.Option(help="classifiers, encoders or lenses; all of them by default.")] = "all",
) -> None:
    """List the classifiers, encoders and lenses that can be given by name."""
    import fnmatch

    from whylens.classifiers import list_models
    from whylens.encoders import list_encoders
    from whylens.errors import unknown_name
    from whylens.lens import built_in_lenses

    kinds = {
        "classifiers": lambda: [f"{source}:{n}" for source, names in list_models(pattern).items() for n in names],
        "encoders": lambda: [
            name for name in list_encoders() if any(fnmatch.fnmatch(n, pattern) for n in (name, name.split(":", 1)[-1]))
        ],
        "lenses": lambda: [n for n in built_in_lenses() if fnmatch.fnmatch(n, pattern)],
    }
    if kind != "all" and kind not in kinds:
        raise unknown_name("kind", kind, [*kinds, "all"])
    for name, listing in kinds.items():
        if kind in ("all", name):
            found = listing()
            output().print(f"[bold]{name}[/] ({len(found)})")
            for entry in found:
                output().print(f"  {entry}", markup=False)
    if kind in ("all", "classifiers"):
        output().print(
            "Also: hf:REPOSITORY_OR_FOLDER, and a checkpoint of your own as file:CHECKPOINT@torchvision:NAME or @timm:NAME.",
            markup=False,
        )
