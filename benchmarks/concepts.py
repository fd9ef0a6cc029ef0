"""Concepts of the built-in networks: latents of their dictionaries beside channels and NMF concepts; the cost of C2.

python benchmarks/concepts.py --data FOLDER [--pictures 2500] [--deleted 20] [--only table speed] [--work FOLDER]

FOLDER holds val.tar and train-0.tar (members WNID/FILE) with classes.csv. All bases are measured alike: activation maps
at the layer's resolution, C2 by the built-in encoder, the same held-out pictures. NMF is fitted on pictures of
train-0.tar. Deletion takes the latents of the first pictures away in four orders, see ``whylens evaluate --kind traces``.
Finished rows stay in ``--work``, so that the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import Row, interleaved, write_results
from torch import Tensor

from whylens.claims.factorisation import nmf_codes, nmf_directions
from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary
from whylens.evaluation.traces import evaluate_traces
from whylens.lens import Lens
from whylens.lens.latents import LatentReader, last_map
from whylens.metrics.backbones import load_backbone
from whylens.metrics.consistency import c2_score, consistency, consistency_over_pairs
from whylens.metrics.intervals import bootstrap

LENSES = ("tiny-imagenet-bcos", "tiny-imagenet")
NMF_CONCEPTS = 64
# What contributions are, by lens.
METHODS = {"tiny-imagenet-bcos": "fact", "tiny-imagenet": "frozen_gate"}
# A code counts as active above this share of the largest of its vector: NMF's are never exactly zero.
ACTIVE = 0.01


@dataclass(frozen=True)
class Pictures:
    """Pictures (N, 3, H, W) in [0, 1] with labels (N,)."""

    x: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Basis:
    """One way to write features as concepts: codes (n, K) of vectors (n, d), and back; ``rows`` (K, d) read a concept off a
    position where codes belong to whole pictures."""

    name: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    rows: Tensor


def read(data: Path, archive: str, classifier: Classifier, limit: int) -> Pictures:
    with (data / "classes.csv").open(encoding="utf-8") as file:
        index = {row["wnid"]: int(row["index"]) for row in csv.DictReader(file)}
    pictures, labels = [], []
    with tarfile.open(data / archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile()]
        step = max(1, len(members) // limit)
        for member in members[::step][:limit]:
            file = tar.extractfile(member)
            assert file is not None
            pictures.append(classifier.preprocess(io.BytesIO(file.read()).getvalue()))
            labels.append(index[member.name.split("/")[0]])
    return Pictures(torch.stack(pictures), torch.tensor(labels))


def cells_of(classifier: Classifier, x: Tensor) -> Tensor:
    """Features at positions (N, P, d), half precision."""
    with torch.no_grad():
        return torch.cat([classifier.features(part).flatten(2).transpose(1, 2).half() for part in x.split(100)])


def bases(dictionary: Dictionary, rows: Tensor) -> list[Basis]:
    return [
        Basis(
            f"latents ({dictionary.latents})",
            lambda v: dictionary.sparse(v).dense(),
            dictionary.decode,
            dictionary.encoder,
        ),
        Basis(f"channels ({dictionary.width})", lambda v: v.clamp_min(0), lambda a: a, torch.eye(dictionary.width)),
        Basis(f"NMF ({len(rows)})", lambda v: nmf_codes(v, rows), lambda a: a @ rows, torch.linalg.pinv(rows).T),
    ]


def measure(
    classifier: Classifier, cells: Tensor, grid: tuple[int, int], pictures: Pictures, basis: Basis, seen: Tensor
) -> Row:
    """Accuracy with the basis in place, R2, active concepts and C2.

    Features without positions are the mean over the cells of the layer before: a concept's map is then the part that
    every cell has in the concept's linear reading.
    """
    pooled = not classifier.spatial
    codes_at = cells.float().mean(1, keepdim=True) if pooled else cells
    right, missed, spread, active, count = 0, 0.0, 0.0, 0.0, 0
    centre = codes_at.float().mean((0, 1))
    values: list[Tensor] = []
    present: list[Tensor] = []
    for part, labels in zip(codes_at.split(50), pictures.labels.split(50), strict=True):
        vectors = part.float().flatten(0, 1)
        codes = basis.encode(vectors)
        decoded = basis.decode(codes)
        missed += float((vectors - decoded).square().sum())
        spread += float((vectors - centre).square().sum())
        active += float((codes > ACTIVE * codes.amax(1, keepdim=True)).sum())
        count += len(vectors)
        features = decoded if pooled else decoded.unflatten(0, (len(part), -1)).transpose(1, 2).unflatten(2, grid)
        with torch.no_grad():
            right += int((classifier.head(features).argmax(1) == labels).sum())
        codes = codes.unflatten(0, (len(part), -1))
        present.append(codes.sum(1))
        if not pooled:
            values.append(codes.half().to_sparse())
    presence = torch.cat(present)

    def maps(chosen: Tensor, concepts: Tensor) -> Tensor:
        if pooled:
            return torch.einsum("mpd,md->mp", cells[chosen].float(), basis.rows[concepts]).unflatten(1, grid)
        found = torch.zeros(len(chosen), *grid)
        for block in (chosen // 50).unique().tolist():
            dense = values[block].to_dense()
            own = (chosen // 50 == block).nonzero()[:, 0]
            found[own] = dense[chosen[own] % 50, :, concepts[own]].float().unflatten(1, grid)
        return found

    # Sorted by picture inside c2_score, so that a block is made dense once for all its pairs.
    found = c2_score(presence, maps, lambda chosen: seen[chosen], size=classifier.size, batch_size=50)
    interval = found.mean
    return {
        "layer": classifier.features_name,
        "concepts": basis.name,
        "accuracy": round(right / len(pictures.labels), 3),
        "R2": round(1 - missed / spread, 3),
        "active": round(active / count, 1),
        "C2": None if found.c2 is None else round(found.c2, 3),
        "95 % interval": f"{(interval.low or 0) - (found.baseline or 0):.3f} to {(interval.high or 0) - (found.baseline or 0):.3f}",
        "random": round(found.baseline or 0, 4),
        "scored": interval.count,
    }


def table(data: Path, limit: int, lenses: Sequence[str], own: Path | None, deleted: int, work: Path) -> list[Row]:
    """One row a basis; rows that are in ``work`` are read."""
    rows: list[Row] = []
    eyes = load_backbone("builtin:tiny")
    for name in lenses:
        lens = Lens.load(name)
        if own is not None:
            lens = lens.with_dictionary(Dictionary.load(own)).with_more_dictionaries()
        pictures = read(data, "val.tar", lens.classifier, limit)
        fitting = read(data, "train-0.tar", lens.classifier, limit)
        with torch.no_grad():
            logits = torch.cat([lens.classifier.logits(part) for part in pictures.x.split(100)])
        plain = float((logits.argmax(1) == pictures.labels).float().mean())
        seen: Tensor | None = None
        for dictionary in lens.dictionaries:
            reader = LatentReader(lens.classifier, dictionary)
            at = reader.classifier
            files = [work / f"{name}--{at.features_name}--{basis}.json" for basis in ("latents", "channels", "NMF")]
            areas = deletion(data, lens, name, dictionary, deleted, work)
            if all(file.exists() for file in files):
                found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
                rows += [{**row, **(areas if n == 0 else dict.fromkeys(areas, ""))} for n, row in enumerate(found)]
                continue
            seen = torch.cat([eyes(part) for part in pictures.x.split(100)]) if seen is None else seen
            # Pooled features of a network that averages last are the mean of its last map.
            below = at if at.spatial else at.at(last_map(at))
            grid = tuple(below.features(pictures.x[:1]).shape[2:])
            cells = cells_of(below, pictures.x)
            vectors = cells_of(below, fitting.x).float()
            vectors = vectors.flatten(0, 1) if at.spatial else vectors.mean(1)
            directions = nmf_directions(vectors.clamp_min(0), NMF_CONCEPTS)
            for n, (basis, file) in enumerate(zip(bases(dictionary, directions), files, strict=True)):
                started = time.process_time()
                row = {"network": name} | measure(at, cells, grid, pictures, basis, seen)
                row["points lost"] = round(100 * (plain - row["accuracy"]), 1) + 0.0
                file.write_text(json.dumps(row), encoding="utf-8")
                rows.append({**row, **(areas if n == 0 else dict.fromkeys(areas, ""))})
                print(row, f"{time.process_time() - started:.0f} s", flush=True)
    return rows


def deletion(data: Path, lens: Lens, name: str, dictionary: Dictionary, count: int, work: Path) -> Row:
    """Areas under the deletion curve of the predicted class's logit in four orders, mean and bootstrap 95 % interval."""
    method = METHODS.get(name, "frozen_gate")
    layer = dictionary.layer or "features"
    out = work / f"deletion--{name}--{layer}"
    orders = (method, "gradient", "sobol", "random")
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        with tarfile.open(data / "val.tar") as tar:
            members = [m for m in tar.getmembers() if m.isfile()]
            for number, member in enumerate(members[:: max(1, len(members) // count)][:count]):
                file = tar.extractfile(member)
                assert file is not None
                paths.append(Path(folder) / f"{number:04d}.JPEG")
                paths[-1].write_bytes(file.read())
        if not (out / "results.json").exists():
            evaluate_traces(lens, paths, orders, out, layer=layer)
    pictures = [json.loads(f.read_text(encoding="utf-8")) for f in sorted((out / "rows").glob("*.json"))]
    row: Row = {}
    for order in orders:
        values = []
        for picture in pictures:
            found = picture["methods"][order]["values"]
            values.append(next(v for key, v in found.items() if key.startswith("deletion-concepts/logit/")))
        interval = bootstrap(np.array(values, np.float64)[:, None], seed=0)[0]
        label = "contributions" if order == method else order
        row[f"deletion AUC, {label}"] = f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
    print(name, layer, row, flush=True)
    return row


def speed() -> list[Row]:
    """Exact closed form against all pairs, for one concept of N pictures and 384 features."""
    rows = []
    for count in (250, 1000, 2500):
        generator = torch.Generator().manual_seed(count)
        vectors, weights = torch.randn(count, 384, generator=generator), torch.rand(count, generator=generator)
        times = interleaved(
            {
                "closed form": lambda v=vectors, w=weights: consistency(v, w),
                "all pairs": lambda v=vectors, w=weights: consistency_over_pairs(v, w),
            },
            7,
        )
        gap = abs(consistency(vectors, weights) - consistency_over_pairs(vectors, weights))
        rows.append(
            {
                "pictures": count,
                "closed form ms": round(1000 * times["closed form"], 2),
                "all pairs ms": round(1000 * times["all pairs"], 2),
                "times faster": round(times["all pairs"] / times["closed form"], 1),
                "difference": f"{gap:.0e}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=2500)
    parser.add_argument("--deleted", type=int, default=20, help="pictures whose concepts are deleted")
    parser.add_argument("--work", type=Path, default=Path("concepts-work"), help="folder of finished rows")
    parser.add_argument("--lenses", nargs="*", default=LENSES)
    parser.add_argument("--dictionary", type=Path, help="instead of those that the lens ships")
    parser.add_argument("--only", nargs="*", choices=("table", "speed"), default=["table", "speed"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    sections: dict[str, list[Row]] = {}
    if "table" in options.only:
        sections[f"Concepts on {options.pictures} validation pictures"] = table(
            options.data, options.pictures, options.lenses, options.dictionary, options.deleted, options.work
        )
    if "speed" in options.only:
        sections["Consistency of one concept"] = speed()
    write_results("concepts", sections, options.out)


if __name__ == "__main__":
    main()
