"""Concept contributions, presence and pixel maps against the straightforward routes, and what a cache takes on disk.

python benchmarks/traces.py [--sizes resnet50-layer4 small ...] [--pictures 16] [--repeats 5] [--out benchmarks/results]

Sizes are those of published dictionaries (FaCT, arXiv 2510.25512, table A1) with random weights: contributions and presence
depend on nothing else. The straightforward routes are dense: codes of all latents, a dense decoder, autograd. Every pair of
routes is checked to give the same numbers. Pixel maps are of a small B-cos network.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from harness import Row, interleaved, write_results
from torch import Tensor
from torch.nn.functional import normalize

from whylens.bcos import BcosConv2d, SmallBcosResNet, calibrate_norms, explanation_mode
from whylens.bcos.closed_form import LastLayer
from whylens.bcos.layers import unit_rows
from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary, DictionarySettings, SparseCodes
from whylens.traces import HeldNetwork, concept_map, concept_shares, find_places, gradient_at

# Units, positions, latents, k, classes.
SIZES = {
    "resnet50-layer4": (2048, 49, 16384, 16, 1000),
    "densenet121-norm5": (1024, 49, 16384, 16, 1000),
    "tiny-imagenet-bcos": (256, 64, 1024, 16, 100),
}


def dictionary_of(width: int, latents: int, k: int) -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    decoder = normalize(torch.randn(latents, width, generator=generator), dim=1)
    return Dictionary(decoder.clone(), decoder, DictionarySettings(k=k, bias=False, centre=False))


def dense_codes(dictionary: Dictionary, rows: Tensor) -> Tensor:
    pre = (rows @ dictionary.encoder.T).relu()
    values, indices = pre.topk(dictionary.settings.k or 1, dim=1)
    return torch.zeros_like(pre).scatter(1, indices, values)


def dense_contributions(dictionary: Dictionary, features: Tensor, head: BcosConv2d, targets: Tensor) -> Tensor:
    """Dense codes, dense decoding, the held head, autograd back to the codes."""
    side = features.shape[2:]
    rows = features.flatten(2).transpose(1, 2).flatten(0, 1)
    codes = dense_codes(dictionary, rows).requires_grad_()
    decoded = (codes @ dictionary.decoder).unflatten(0, (len(features), -1)).transpose(1, 2).unflatten(2, side)
    with explanation_mode(head):
        logits = head(decoded).mean((2, 3))
        logits.gather(1, targets[:, None]).sum().backward()
    assert codes.grad is not None
    return (codes * codes.grad).detach().unflatten(0, (len(features), -1)).sum(1)


def contributions(name: str, count: int, repeats: int) -> list[Row]:
    width, positions, latents, k, classes = SIZES[name]
    side = round(positions**0.5)
    generator = torch.Generator().manual_seed(1)
    dictionary = dictionary_of(width, latents, k)
    features = torch.randn(count, width, side, side, generator=generator).relu()
    head = BcosConv2d(width, classes, 1)
    layer = LastLayer(unit_rows(head.linear.weight.detach().flatten(1)), 2.0, 1.0)
    targets = torch.randint(classes, (count,), generator=generator)

    def cached(codes: SparseCodes) -> Tensor:
        decoded = dictionary.decode(codes)
        return concept_shares(codes, dictionary.decoder, layer.gradients(decoded, targets))

    def closed(codes: SparseCodes) -> Tensor:
        return layer.code_contributions(
            dictionary.decode(codes), codes.indices, codes.values, dictionary.decoder, targets
        )

    codes = dictionary.sparse(features)
    expected = dense_contributions(dictionary, features, head, targets)
    for found in (cached(codes), closed(codes)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    gradient = layer.gradients(dictionary.decode(codes), targets)
    dense = codes.dense()
    torch.testing.assert_close(codes.presence(), dense.flatten(2).sum(2))
    seconds = interleaved(
        {
            "contributions: dense codes, autograd": lambda: dense_contributions(dictionary, features, head, targets),
            "contributions: sparse, encoder included": lambda: cached(dictionary.sparse(features)),
            "contributions: sparse, from cached codes": lambda: cached(codes),
            "contributions: closed form, from cached codes": lambda: closed(codes),
            "contributions: sparse, codes and gradient at hand": lambda: concept_shares(
                codes, dictionary.decoder, gradient
            ),
            "presence: dense": lambda: codes.dense().flatten(2).sum(2),
            "presence: sparse": codes.presence,
        },
        repeats,
    )
    rows = []
    for what, value in seconds.items():
        reference = seconds[
            "presence: dense" if what.startswith("presence") else "contributions: dense codes, autograd"
        ]
        rows.append(
            {
                "size": name,
                "route": what,
                "ms a picture": round(1000 * value / count, 3),
                "times as fast": round(reference / value, 1),
            }
        )
    rows.append(disk(name, codes, count, dense))
    return rows


def disk(name: str, codes: SparseCodes, count: int, dense: Tensor) -> Row:
    """A cache of uint16 indices and fp16 values, measured in a file, for 10,000 pictures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes.npz"
        np.savez(path, idx=codes.indices.numpy().astype(np.uint16), val=codes.values.numpy().astype(np.float16))
        size = path.stat().st_size / count * 10_000 / 2**20
    full = dense.numel() * 4 / count * 10_000 / 2**20
    return {
        "size": name,
        "route": f"disk for 10,000 pictures: {size:.0f} MB (dense fp32: {full:.0f} MB)",
        "ms a picture": "",
        "times as fast": "",
    }


def pixel_maps(count: int, repeats: int) -> list[Row]:
    """Maps of 8 concepts: a pass for each against one pass and an adjoint for each."""
    torch.manual_seed(0)
    network = SmallBcosResNet(100).double()
    x = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    calibrate_norms(network, [x])
    classifier = Classifier(network.eval(), size=64, mean=(0.0,) * 3, std=(1.0,) * 3, link="sigmoid")
    places = find_places(classifier, ["stages.1"])
    coefficients = torch.nn.functional.one_hot(torch.arange(count) % 100, 100)

    def together() -> list[Tensor]:
        held = HeldNetwork(classifier, x, places, hold="bcos")
        gradient = gradient_at(held, 0, coefficients)
        return [concept_map(held, concept, gradient=gradient).map for concept in range(8)]

    def apart() -> list[Tensor]:
        found = []
        for concept in range(8):
            held = HeldNetwork(classifier, x, places, hold="bcos")
            found.append(concept_map(held, concept, gradient=gradient_at(held, 0, coefficients)).map)
        return found

    for one, other in zip(together(), apart(), strict=True):
        torch.testing.assert_close(one, other)
    seconds = interleaved({"pixel maps: a pass a concept": apart, "pixel maps: one held pass": together}, repeats)
    first = next(iter(seconds.values()))
    return [
        {
            "size": "small B-cos network, 8 concepts",
            "route": what,
            "ms a picture": round(1000 * value / count, 1),
            "times as fast": round(first / value, 1),
        }
        for what, value in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in options.sizes for row in contributions(name, options.pictures, options.repeats)]
    maps = pixel_maps(min(4, options.pictures), max(1, options.repeats // 2))
    title = f"Contributions and presence, {options.pictures} pictures, median of {options.repeats}"
    write_results("traces", {title: rows, "Pixel maps of 8 concepts": maps}, options.out)


if __name__ == "__main__":
    main()
