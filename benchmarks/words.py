"""What words cost: scoring against one forward pass, fitting against SGD, start-up, memory of a fit.

python benchmarks/words.py [--only scoring fitting start memory] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import Row, interleaved, median_seconds, write_results
from PIL import Image
from torch import Tensor, nn

from whylens import Classifier, ConceptBank, Lens, load_classifier
from whylens.alignment import Moments, Statistics, fit_aligner
from whylens.lens import EncoderReference
from whylens.registry import get_method

WORDS_METHODS = {
    "text_to_concept": ("text_to_concept", {}),
    "faithtrace (penultimate, default)": ("faithtrace", {}),
    "faithtrace (adjoint direction)": ("faithtrace", {"direction": "adjoint"}),
    "phrase_decomposition": ("phrase_decomposition", {}),
    "texter decode": ("texter", {"mode": "decode"}),
    "texter exemplar": ("texter", {"mode": "exemplar"}),
}


def synthetic_pairs(count: int, d: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Non-negative correlated features and unit embeddings that are partly a linear function of them."""
    generator = torch.Generator().manual_seed(seed)
    rank = 128
    latent = torch.randn(count, rank, generator=generator)
    mixing = torch.randn(rank, d, generator=generator) / rank**0.5
    features = (latent @ mixing + 0.3 * torch.randn(count, d, generator=generator)).relu()
    read = torch.randn(rank, m, generator=generator) / rank**0.5
    target = latent @ read + 0.5 * torch.randn(count, m, generator=generator) + 1.0
    return features, nn.functional.normalize(target, dim=1)


def resnet50_lens(phrases: int) -> Lens:
    """A real ResNet-50 (random weights: the arithmetic is the same) with a synthetic 512-wide encoder space."""
    classifier = load_classifier("torchvision:resnet50", pretrained=False)
    features, embeddings = synthetic_pairs(6000, classifier.width, 512)
    moments = Moments(classifier.width, 512)
    moments.update(features[1000:], embeddings[1000:])
    aligner = fit_aligner(moments, features[:1000], embeddings[:1000], minimum_r2=-1.0)
    generator = torch.Generator().manual_seed(1)
    text = nn.functional.normalize(torch.randn(phrases, 512, generator=generator), dim=1)
    return Lens(
        classifier=classifier,
        aligner=aligner,
        bank=ConceptBank(
            phrases=tuple(f"phrase {i}" for i in range(phrases)),
            groups=("synthetic",) * phrases,
            sources=("benchmark",) * phrases,
            name="synthetic",
        ),
        embeddings=text,
        statistics=Statistics.compute(aligner, features[:1000], embeddings[:1000], text),
        encoder=EncoderReference("synthetic", "0" * 64, 512, ("{}",)),
    )


def scoring(batch: int = 32, phrases: int = 5000) -> list[Row]:
    lens = resnet50_lens(phrases)
    classifier: Classifier = lens.classifier
    x = torch.rand(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, logits = classifier.features_and_logits(x)
    hashes = [f"{i:064x}" for i in range(batch)]
    targets = logits.argmax(1)

    def forward() -> None:
        with torch.no_grad():
            classifier.logits(x)

    functions = {"one forward pass": forward}
    for label, (name, settings) in WORDS_METHODS.items():
        method = get_method(name).factory(**settings)
        functions[label] = lambda m=method: m.from_features(
            lens, features, logits, targets, contrasts=None, image_hashes=hashes, seed=0
        )
    seconds = interleaved(functions, repeats=5)
    base = seconds["one forward pass"]
    return [
        {"what": name, "ms a picture": 1000 * s / batch, "share of the forward pass": s / base}
        for name, s in seconds.items()
    ]


def sgd_aligner(features: Tensor, embeddings: Tensor, epochs: int = 6) -> tuple[Tensor, Tensor]:
    """The usual recipe: both sides scaled to variance 4.5, MSE, SGD 0.01, momentum 0.9, decay 5e-4, batch 100.

    The bias is unscaled correctly here (by the target's scale alone).
    """
    c1, c2 = (4.5 / features.var()).sqrt(), (4.5 / embeddings.var()).sqrt()
    layer = nn.Linear(features.shape[1], embeddings.shape[1])
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.randperm(len(features), generator=generator).split(100):
            loss = nn.functional.mse_loss(layer(features[chosen] * c1), embeddings[chosen] * c2)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        return layer.weight * c1 / c2, layer.bias / c2


def fitting(count: int = 50_000, m: int = 512) -> list[Row]:
    return [fitting_row(count, d, m) for d in (512, 2048)]


def fitting_row(count: int, d: int, m: int) -> Row:
    features, embeddings = synthetic_pairs(count + 5000, d, m)
    held_features, held_embeddings = features[count:], embeddings[count:]
    features, embeddings = features[:count], embeddings[:count]

    def ridge() -> tuple[Tensor, Tensor]:
        moments = Moments(d, m)
        for f, e in zip(features.split(1024), embeddings.split(1024), strict=True):
            moments.update(f, e)
        aligner = fit_aligner(moments, held_features, held_embeddings)
        return aligner.weight, aligner.bias

    def sgd() -> tuple[Tensor, Tensor]:
        return sgd_aligner(features, embeddings)

    def r2(solution: tuple[Tensor, Tensor]) -> float:
        residual = ((held_features @ solution[0].T + solution[1] - held_embeddings) ** 2).sum()
        return float(1 - residual / ((held_embeddings - held_embeddings.mean(0)) ** 2).sum())

    # The R2 runs are the warm-up of the timed ones.
    r2_of = {"ridge": r2(ridge()), "sgd": r2(sgd())}
    times: dict[str, list[float]] = {"ridge": [], "sgd": []}
    for _ in range(3):
        for name, function in (("ridge", ridge), ("sgd", sgd)):
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    ours, theirs = statistics.median(times["ridge"]), statistics.median(times["sgd"])
    return {
        "features": d,
        "pictures": count,
        "ridge, both directions (s)": ours,
        "SGD, one direction (s)": theirs,
        "times faster": theirs / ours,
        "held-out R2 ridge": r2_of["ridge"],
        "held-out R2 SGD": r2_of["sgd"],
    }


def start() -> list[Row]:
    def command(*arguments: str) -> float:
        return median_seconds(
            lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True), repeats=5
        )

    rows = [
        {"what": "python -c pass", "seconds": command("-c", "pass")},
        {"what": "import whylens", "seconds": command("-c", "import whylens")},
        {"what": "whylens --help", "seconds": command("-m", "whylens", "--help")},
        {"what": "import torch", "seconds": command("-c", "import torch")},
        {"what": "whylens banks everyday", "seconds": command("-m", "whylens", "banks", "everyday")},
    ]
    rows.append(
        {
            "what": "Lens.load('tiny-imagenet'), torch imported",
            "seconds": median_seconds(lambda: Lens.load("tiny-imagenet"), 5),
        }
    )
    lens = Lens.load("tiny-imagenet")
    picture = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    rows.append({"what": "lens.explain of one picture", "seconds": median_seconds(lambda: lens.explain(picture), 5)})
    return rows


MEMORY_SCRIPT = """
import json, sys
from whylens import fit
lens = fit("builtin:tiny-imagenet", "builtin:tiny", sys.argv[1], minimum_r2=-100.0)
print(json.dumps({"peak MB": lens.report["peak_memory_mb"], "used": lens.report["pictures_used"]}))
"""


def memory(counts: tuple[int, ...] = (1000, 50_000)) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        written = 0
        for count in counts:
            for i in range(written, count):
                small = generator.integers(0, 255, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(
                    Path(folder) / f"{i:06d}.jpg", quality=85
                )
            written = count
            run = subprocess.run(
                [sys.executable, "-c", MEMORY_SCRIPT, folder], check=True, capture_output=True, text=True
            )
            row = json.loads(run.stdout)
            rows.append({"pictures": row["used"], "peak memory (MB)": row["peak MB"]})
    return rows


SECTIONS = {
    "scoring": ("Cost of words beside one ResNet-50 forward pass (batch 32, 5,000 phrases, control included)", scoring),
    "fitting": ("Closed-form aligner against six epochs of SGD on equal features", fitting),
    "start": ("Start-up and load times", start),
    "memory": ("Peak memory of whylens.fit", memory),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    for key in options.only:
        title, function = SECTIONS[key]
        rows = function()
        write_results("words", {title: rows}, options.out)
        print(title)
        for row in rows:
            print("  ", row)


if __name__ == "__main__":
    main()
