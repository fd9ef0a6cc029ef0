"""`whylens dictionary`: train sparse autoencoders over a classifier's features, and look at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whylens.cli.console import errors, output, progress_bar

if TYPE_CHECKING:
    from whylens.classifiers import Classifier
    from whylens.dictionaries import Dictionary

app = typer.Typer(
    no_args_is_help=True,
    help="Train dictionaries (sparse autoencoders) over a classifier's features, and inspect them.",
)


@app.command()
def train(
    images: Annotated[
        list[Path], typer.Option(help="Folder or file with pictures; may be repeated. No labels needed.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the dictionary to.")],
    classifier: Annotated[
        str | None, typer.Option(help="Source of the classifier, such as torchvision:resnet50; or give --lens.")
    ] = None,
    lens: Annotated[str | None, typer.Option(help="Built-in lens or folder whose classifier is meant.")] = None,
    layer: Annotated[
        str | None, typer.Option(help="Layer whose output is encoded; by default what the head reads.")
    ] = None,
    preset: Annotated[str, typer.Option(help="default, paper (TEXTER) or fact (FaCT).")] = "default",
    kind: Annotated[str | None, typer.Option(help="topk, batchtopk or jumprelu.")] = None,
    latents: Annotated[int | None, typer.Option(help="Number of latents; 8 times the width by default.")] = None,
    k: Annotated[int | None, typer.Option("--k", "-k", help="Active latents of a vector.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the stored features.")] = None,
    batch: Annotated[int | None, typer.Option(help="Feature vectors of one training step.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    pooled: Annotated[bool, typer.Option("--pooled", help="Average features over positions.")] = False,
    positions: Annotated[int | None, typer.Option(help="Positions of each picture to store; all by default.")] = None,
    sampling: Annotated[str, typer.Option(help="Of positions: uniform or importance.")] = "uniform",
    limit: Annotated[int | None, typer.Option(help="Use at most so many pictures.")] = None,
    stability: Annotated[int, typer.Option(help="Train so many more from other seeds and compare.")] = 0,
    minimum_agreement: Annotated[
        float, typer.Option(help="Refuse a dictionary that keeps the predicted class less often.")
    ] = 0.0,
    half: Annotated[bool, typer.Option("--half", help="Round weights to fp16: half the disk.")] = False,
    batch_size: Annotated[int, typer.Option(help="Pictures in one pass.")] = 64,
    seed: Annotated[int, typer.Option(help="Of weights, order and held-out pictures.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing dictionary.")] = False,
) -> None:
    """Train a dictionary and measure it. Interrupted, the same command goes on."""
    import shutil

    from whylens.dictionaries import dictionary_preset, fit_dictionary
    from whylens.errors import StoreError
    from whylens.images import find_pictures

    if out.exists() and not overwrite:
        raise StoreError(f"{out} exists already. Choose another --out, or give --overwrite.")
    given = {"kind": kind, "latents": latents, "k": k, "epochs": epochs, "batch_size": batch, "rate": rate}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = dictionary_preset(preset, **changes, seed=seed)
    pictures = find_pictures(images)
    with errors().status("Loading the classifier"):
        loaded = _classifier(classifier, lens, layer, device)
    workspace = out.with_name(f"{out.name}.unfinished")
    with progress_bar("Computing features") as bar:
        dictionary = fit_dictionary(
            loaded,
            pictures,
            settings,
            pooled=pooled,
            positions=positions,
            sampling=sampling,
            limit=limit,
            stability=stability,
            minimum_agreement=minimum_agreement,
            half=half,
            workspace=workspace,
            batch_size=batch_size,
            seed=seed,
            progress=lambda what, done, total: bar(done, total),
        )
    dictionary.save(out, overwrite=overwrite)
    shutil.rmtree(workspace, ignore_errors=True)
    say = output().print
    say(f"[bold]Dictionary written to {out}[/]")
    _describe(dictionary.report, repr(dictionary))
    say(f"Next: whylens dictionary inspect {out}", markup=False)


@app.command()
def inspect(
    folder: Annotated[
        Path, typer.Argument(help="A dictionary, or a lens (folder or built-in name), all of whose are shown.")
    ],
    classifier: Annotated[str | None, typer.Option(help="Check that the dictionary is of this classifier.")] = None,
    lens: Annotated[str | None, typer.Option(help="Check that it is of this lens's classifier.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything as JSON; of a lens with several dictionaries a list.")
    ] = False,
) -> None:
    """Print what a dictionary is of, its settings and its measured quality."""
    from whylens.dictionaries import Dictionary

    places = _folders(folder)
    found = [Dictionary.load(place) for place in places]
    if classifier or lens:
        loaded = _classifier(classifier, lens, None, device)
        for dictionary in found:
            dictionary.check(loaded, layer=False)
            same = dictionary.layer is None or dictionary.layer == loaded.layer
            dictionary.check(loaded if same else loaded.at(str(dictionary.layer)))
    if as_json:
        metas = [_meta(dictionary) for dictionary in found]
        shown: Any = metas[0] if len(metas) == 1 else metas
        output().print(json.dumps(shown, indent=1), markup=False, soft_wrap=True)
        return
    for number, (place, dictionary) in enumerate(zip(places, found, strict=True)):
        if number:
            output().print()
        _show(place if len(places) > 1 else folder, dictionary)
        if classifier or lens:
            output().print("It fits the classifier.")


def _folders(folder: Path) -> list[Path]:
    """The folders of the dictionaries: a lens may hold several, and a built-in lens is known by its name."""
    from whylens.lens.storage import BUILT_IN, built_in_lenses

    if not folder.exists() and str(folder) in built_in_lenses():
        folder = BUILT_IN / folder
    inner = [folder / "dictionary", *sorted(folder.glob("dictionary-*"), key=lambda f: (len(f.name), f.name))]
    return [f for f in inner if (f / "dictionary.json").is_file()] or [folder]


def _meta(dictionary: Dictionary) -> dict[str, Any]:
    import dataclasses

    return {
        "fingerprint": dictionary.fingerprint,
        "latents": dictionary.latents,
        "width": dictionary.width,
        "origin": dataclasses.asdict(dictionary.origin),
        "settings": dictionary.settings.to_dict(),
        "report": dictionary.report,
    }


def _show(folder: Path, dictionary: Dictionary) -> None:
    say = output().print
    origin, settings = dictionary.origin, dictionary.settings
    say(f"[bold]{folder}[/]")
    _describe(dictionary.report, repr(dictionary))
    where = f"{origin.features}{', averaged over positions' if origin.pooled else ''}"
    say(f"Of {origin.classifier or 'an unknown classifier'} ({origin.fingerprint[:12] or 'no fingerprint'}): {where}.")
    say(
        f"Preset {settings.preset}: {'bias' if settings.bias else 'no bias'}, "
        f"{'centred' if settings.centre else 'not centred'}, {settings.epochs:g} epochs, rate {settings.rate:g}, seed {settings.seed}."
    )
    say(f"Fingerprint {dictionary.fingerprint[:12]}.")


def _classifier(source: str | None, lens: str | None, layer: str | None, device: str | None) -> Classifier:
    from whylens.classifiers import load_classifier
    from whylens.errors import InputError

    if (source is None) == (lens is None):
        raise InputError("Give either --classifier or --lens.")
    if source is not None:
        loaded = load_classifier(source, device=device)
    else:
        from whylens.lens import Lens

        loaded = Lens.load(lens or "", device=device).classifier
    return loaded if layer is None or loaded.layer == layer else loaded.at(layer)


def _describe(report: dict[str, Any], head: str) -> None:
    say = output().print
    say(head, markup=False)
    if "r2" in report:
        say(
            f"Held-out features ({report['held_out']}): R2 {report['r2']:.3f}, {report['l0']:.1f} active latents; "
            f"of all {report['vectors']} vectors {report['dead']:.1%} of the latents dead, {report['always_on']:.1%} always on."
        )
    fidelity = report.get("fidelity")
    if fidelity:
        say(
            f"Classifier with the dictionary in it ({fidelity['pictures']} held-out pictures): same class "
            f"{fidelity['agreement']:.1%}, its logit changes by {fidelity['logit_change']:.3g} on average "
            f"(standard deviation of that logit {fidelity['logit_spread']:.3g})."
        )
    stability = report.get("stability")
    if stability:
        say(
            f"Against {stability['seeds']} other seed(s): mean cosine {stability['mean_cosine']:.2f}, "
            f"{stability['found_again']:.0%} of the latents found again."
        )
    pictures, training = report.get("pictures"), report.get("training")
    if pictures and training:
        # A dictionary trained outside `fit_dictionary` says less of its pictures.
        failed = len(pictures.get("failed", ()))
        found = f" of {pictures['found']}" if "found" in pictures else ""
        seconds = f", {training['seconds']:.0f} s" if "seconds" in training else ""
        say(
            f"{pictures['used']} pictures used{found}"
            + (f", {failed} could not be read" if failed else "")
            + f"; {training['vectors']} training vectors, {training['steps']} steps{seconds}."
        )
