"""A lens as a folder: `lens.json`, `lens.safetensors` and perhaps `dictionary/`, `dictionary-2/`... and `thumbnails.safetensors`; built-in lenses lie in the package beside their classifier."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from whylens.alignment import Aligner, Statistics
from whylens.banks import ConceptBank
from whylens.classifiers import Classifier, load_classifier
from whylens.dictionaries import Dictionary
from whylens.dictionaries.storage import load_dictionary, write_files
from whylens.errors import InputError, unknown_name
from whylens.lens.lens import EncoderReference, Lens, library_versions
from whylens.lens.thumbnails import FILE as THUMBNAILS
from whylens.lens.thumbnails import Thumbnails
from whylens.store import atomic_file, atomic_folder

LENS_SCHEMA = "1.0"
DICTIONARY = "dictionary"
# Tensors of a lens that may be absent.
OPTIONAL = ("latent_exemplars", "class_embeddings", "spectrum", "reference_features", "reference_embeddings")
BUILT_IN = Path(__file__).parent / "data"


def built_in_lenses() -> list[str]:
    """Names of the lenses that ship with the package."""
    return sorted(p.parent.name for p in BUILT_IN.glob("*/lens.json"))


def save_lens(lens: Lens, folder: Path, *, overwrite: bool) -> Path:
    """Write a lens; see :meth:`Lens.save`."""
    tensors = {f"aligner.{name}": t for name, t in lens.aligner.to_tensors().items()}
    tensors |= {f"statistics.{name}": t for name, t in lens.statistics.to_tensors().items()}
    # Unit embeddings keep three digits in fp16, finer than what separates any two phrases.
    tensors["embeddings"] = lens.embeddings.half()
    meta = {
        "schema_version": LENS_SCHEMA,
        "name": lens.name,
        "classifier": {
            "source": lens.classifier.source,
            "name": lens.classifier.name,
            "fingerprint": lens.classifier.fingerprint,
            "class_names": list(lens.classifier.class_names),
            "features": lens.classifier.features_name,
            "layer": lens.classifier.layer,
            "size": list(lens.classifier.size),
        },
        "encoder": dataclasses.asdict(lens.encoder),
        "aligner_report": dataclasses.asdict(lens.aligner.report),
        "bank": {
            "name": lens.bank.name,
            "phrases": list(lens.bank.phrases),
            "groups": list(lens.bank.groups),
            "sources": list(lens.bank.sources),
        },
        "report": dict(lens.report),
        "versions": library_versions(),
    }
    for name in OPTIONAL:
        value = getattr(lens, name)
        if value is not None:
            # Features have any range; what they overflow in fp16 would come back as infinite.
            tensors[name] = value if name == "reference_features" else value.half()
    if lens.dictionary is not None:
        meta["dictionary"] = lens.dictionary.fingerprint
    if lens.more_dictionaries:
        meta["more_dictionaries"] = [dictionary.fingerprint for dictionary in lens.more_dictionaries]
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary / "lens.safetensors")
        text = json.dumps(meta, indent=1, ensure_ascii=False)
        (temporary / "lens.json").write_text(text, encoding="utf-8")
        if lens.dictionary is not None:
            (temporary / DICTIONARY).mkdir()
            write_files(lens.dictionary, temporary / DICTIONARY)
        for number, dictionary in enumerate(lens.more_dictionaries, 2):
            (temporary / f"{DICTIONARY}-{number}").mkdir()
            write_files(dictionary, temporary / f"{DICTIONARY}-{number}")
        if lens.thumbnails is not None:
            lens.thumbnails.write(temporary / THUMBNAILS)
    return folder


def load_lens(
    source: str | os.PathLike[str],
    *,
    classifier: Classifier | None,
    device: str | torch.device | None,
) -> Lens:
    """Read a lens; see :meth:`Lens.load`."""
    folder = _find(source)
    meta, tensors = _read(folder)
    if classifier is None:
        classifier = _load_classifier(meta["classifier"], folder, device)
    elif device is not None:
        raise InputError("Give either a classifier, which has its device already, or a device.")
    expected = meta["classifier"]["fingerprint"]
    if classifier.fingerprint != expected:
        raise InputError(
            f"The lens {folder.name!r} was fitted for the classifier {meta['classifier']['name']!r} (fingerprint "
            f"{expected[:12]}), but this classifier is {classifier.name!r} ({classifier.fingerprint[:12]}): other weights "
            "or another architecture. Load the right weights, or fit a lens for this classifier."
        )

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    bank = meta["bank"]
    embeddings = torch.nn.functional.normalize(tensors["embeddings"].float(), dim=1)
    if len(embeddings) != len(bank["phrases"]):
        raise InputError(f"{folder} is damaged: {len(bank['phrases'])} phrases but {len(embeddings)} embeddings.")
    encoder = meta["encoder"]
    optional = {name: tensors[name].float() for name in OPTIONAL if name in tensors}
    if "class_embeddings" in optional:
        optional["class_embeddings"] = torch.nn.functional.normalize(optional["class_embeddings"], dim=1)
    return Lens(
        classifier=classifier,
        aligner=Aligner.from_tensors(part("aligner."), meta["aligner_report"]),
        bank=ConceptBank(
            phrases=tuple(bank["phrases"]),
            groups=tuple(bank["groups"]),
            sources=tuple(bank["sources"]),
            name=bank["name"],
        ),
        embeddings=embeddings,
        statistics=Statistics.from_tensors(part("statistics.")),
        encoder=EncoderReference(
            encoder["source"], encoder["fingerprint"], encoder["width"], tuple(encoder["templates"])
        ),
        name=meta["name"],
        report=meta["report"],
        dictionary=_load_dictionary(meta.get("dictionary"), folder / DICTIONARY, classifier),
        more_dictionaries=tuple(
            _load_dictionary(expected, folder / f"{DICTIONARY}-{number}", classifier)
            for number, expected in enumerate(meta.get("more_dictionaries", ()), 2)
        ),
        thumbnails=Thumbnails.read(folder / THUMBNAILS) if (folder / THUMBNAILS).is_file() else None,
        **optional,
    )


@overload
def _load_dictionary(expected: str, folder: Path, classifier: Classifier) -> Dictionary: ...
@overload
def _load_dictionary(expected: str | None, folder: Path, classifier: Classifier) -> Dictionary | None: ...
def _load_dictionary(expected: str | None, folder: Path, classifier: Classifier) -> Dictionary | None:
    if expected is None:
        return None
    dictionary = load_dictionary(folder)
    if dictionary.fingerprint != expected:
        raise InputError(
            f"The lens in {folder.parent} was saved with the dictionary {str(expected)[:12]}, but another one "
            f"({dictionary.fingerprint[:12]}) lies in it."
        )
    dictionary.check(classifier, layer=False)
    return dictionary.to(classifier.device)


def _find(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if (path / "lens.json").is_file():
        return path
    name = str(source)
    if (BUILT_IN / name / "lens.json").is_file() and path.name == name:
        return BUILT_IN / name
    if path.is_dir():
        raise InputError(f"The folder {name!r} holds no lens (no lens.json in it).")
    if path.exists():
        raise InputError(f"{name!r} is a file; a lens is a folder that Lens.save or `whylens fit` wrote.")
    raise unknown_name("lens", name, built_in_lenses(), hint="Or name a folder that `whylens fit` wrote.")


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        meta = json.loads((folder / "lens.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "lens.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"The lens in {folder} cannot be read: {error}") from error
    if not isinstance(meta, dict) or str(meta.get("schema_version", "")).split(".")[0] != LENS_SCHEMA.split(".")[0]:
        found = meta.get("schema_version") if isinstance(meta, dict) else None
        raise InputError(f"The lens in {folder} has the schema {found!r}; this version reads {LENS_SCHEMA}.")
    if "embeddings" not in tensors and meta.get("embeddings_of"):
        tensors["embeddings"] = _embeddings_of(folder.parent / str(meta["embeddings_of"]), meta)
    missing = [key for key in ("classifier", "encoder", "bank", "aligner_report", "report", "name") if key not in meta]
    if missing or "embeddings" not in tensors:
        raise InputError(f"The lens in {folder} is incomplete: {', '.join(missing) or 'embeddings'} missing.")
    return meta, tensors


def _embeddings_of(folder: Path, meta: dict[str, Any]) -> torch.Tensor:
    """Embeddings of a lens that lies beside it: built-in lenses of one encoder share one bank."""
    other, tensors = _read(folder)
    same = other["bank"]["phrases"] == meta.get("bank", {}).get("phrases") and other["encoder"] == meta.get("encoder")
    if not same:
        raise InputError(f"{folder.parent} is damaged: the lens {meta.get('name')!r} shares another bank or encoder.")
    return tensors["embeddings"]


def share_embeddings(folder: Path, other: str) -> None:
    """Leave a saved lens's embeddings to one that lies beside it, for lenses that ship together.

    Args:
        folder: of the lens, as :meth:`Lens.save` wrote it; both files are rewritten.
        other: name of the folder beside it.

    Raises:
        InputError: when the two have other phrases, another encoder, or other embeddings.
    """
    meta, tensors = _read(folder)
    if not torch.equal(_embeddings_of(folder.parent / other, meta), tensors["embeddings"]):
        raise InputError(f"The embeddings of {folder.name} and {other} differ.")
    del tensors["embeddings"]
    meta["embeddings_of"] = other
    with atomic_file(folder / "lens.safetensors", overwrite=True) as temporary:
        save_file(tensors, temporary)
    with atomic_file(folder / "lens.json", overwrite=True) as temporary:
        temporary.write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")


def _load_classifier(meta: dict[str, Any], folder: Path, device: str | torch.device | None) -> Classifier:
    source = meta["source"]
    if source is None:
        raise InputError(
            f"The lens in {folder} was fitted for a module of your own ({meta['name']!r}); pass it as classifier=... "
            "(on the command line, fit with file:CHECKPOINT@ARCHITECTURE instead)."
        )
    return load_classifier(source, class_names=meta["class_names"], features=meta.get("layer"), device=device)
