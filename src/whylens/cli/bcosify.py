"""`whylens bcosify`: an ordinary pretrained CNN rewritten as a B-cos network, to be fine-tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whylens.cli.console import errors, output

if TYPE_CHECKING:
    from whylens.classifiers import Classifier

NEXT = """What is left to do: fine-tune it. The steps that change the function are listed above; until they are learnt back
the network is no classifier and its contributions, exact as they are, explain nonsense. Recipe: binary cross entropy with
targets 1 / classes for the other classes, Adam at a rate of 1e-4, half a cosine, adaptive gradient clipping
(whylens.bcos.training; docs/howto-bcos.md has the loop). Save what was learnt with whylens.classifiers.save_bcosified."""


def run(
    model: Annotated[
        str, typer.Argument(help="torchvision:NAME, timm:NAME, builtin:NAME, or file:CHECKPOINT@one of them.")
    ],
    out: Annotated[Path, typer.Option(help="FILE.safetensors to write.")],
    b: Annotated[float, typer.Option("--b", help="Exponent of the B-cos layers.")] = 2.0,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Pictures to set the norms' variances with, and to compare predictions on; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Use at most so many pictures.")] = 256,
    layers: Annotated[bool, typer.Option("--layers", help="List every change of every layer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Rewrite a pretrained CNN as a B-cos network: steps that keep its function are verified, the others listed."""
    import dataclasses

    from whylens.classifiers import load_classifier
    from whylens.classifiers.bcosified import bcosify_classifier, save_bcosified
    from whylens.errors import StoreError

    if out.exists() and not overwrite:
        raise StoreError(f"{out} exists already. Choose another --out, or give --overwrite.")
    with errors().status("Loading the classifier"):
        original = load_classifier(model)
    with errors().status("Rewriting it"):
        converted, report = bcosify_classifier(original, b=b)
    found = None if images is None else _compare(original, converted, images, limit)
    save_bcosified(converted, out, overwrite=overwrite)
    if as_json:
        meta: dict[str, Any] = {
            "model": model,
            "file": str(out),
            "preserved": report.preserved,
            "completeness": report.completeness,
            "replay": report.replay,
            "changes": [dataclasses.asdict(change) for change in report.changes],
            "comparison": found,
        }
        output().print(json.dumps(meta, indent=1), markup=False, soft_wrap=True)
        return
    say = output().print
    say(f"[bold]{model}[/] rewritten as a B-cos network")
    for preserving, title in (
        (True, "Steps that keep the function:"),
        (False, "Steps that change it, to be learnt back:"),
    ):
        say(f"\n{title}")
        own = [change for change in report.changes if change.preserving == preserving]
        if layers:
            for change in own:
                say(f"  {change.layer}: {change.what}", markup=False)
        else:
            counts: dict[str, int] = {}
            for change in own:
                counts[change.what] = counts.get(change.what, 0) + 1
            for what, count in sorted(counts.items(), key=lambda item: -item[1]):
                say(f"  {count:>4} x {what}", markup=False)
    say(
        f"\nVerified in double precision on random pictures: after the first steps the logits differ by "
        f"{report.preserved:.1g} of their size; of the finished network pixels and constants leave {report.completeness:.1g} "
        f"of a logit open; held, it is a linear map of other pictures up to {report.replay:.1g}.",
        markup=False,
    )
    if found is not None:
        say(
            f"On {found['pictures']} pictures, with the norms' variances set from them, it predicts the same class as "
            f"before for {found['agreement']:.1%}.",
            markup=False,
        )
    say(f"\n{NEXT}", markup=False, soft_wrap=True)
    say(f"\nWritten: {out}. Load it: load_classifier('bcosified:{out}')", markup=False, soft_wrap=True)


def _compare(original: Classifier, converted: Classifier, images: list[Path], limit: int) -> dict[str, Any]:
    import torch

    from whylens.bcos import calibrate_norms
    from whylens.dictionaries.fitting import picture_batches
    from whylens.errors import InputError
    from whylens.images import find_pictures

    if limit < 2:
        raise InputError(f"--limit must be at least 2; it is {limit}.")
    files = find_pictures(images)
    chosen = [files[i * len(files) // limit] for i in range(limit)] if limit < len(files) else files
    batches = list(picture_batches(original, chosen, 32))
    if not batches:
        raise InputError("None of the pictures could be read.")
    with errors().status("Comparing predictions"):
        calibrate_norms(converted.module, batches)
        with torch.no_grad():
            same = [original.logits(x).argmax(1) == converted.logits(x).argmax(1) for x in batches]
    joined = torch.cat(same)
    return {"pictures": len(joined), "agreement": float(joined.float().mean())}
