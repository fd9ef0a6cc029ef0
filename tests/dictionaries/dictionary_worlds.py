"""Features with known causes: sparse positive combinations of unit directions, and small networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary, DictionarySettings, Origin
from whylens.randomness import torch_generator

CAUSES, WIDTH, ACTIVE = 20, 24, 3


def directions() -> Tensor:
    """(CAUSES, WIDTH) random unit rows."""
    return normalize(torch.randn(CAUSES, WIDTH, generator=torch_generator(0, "directions")), dim=1)


def planted(count: int = 6000, seed: int = 1, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Features (N, WIDTH) of ACTIVE causes each, and the codes (N, CAUSES)."""
    generator = torch_generator(seed, "planted")
    chosen = torch.rand(count, CAUSES, generator=generator).topk(ACTIVE, 1).indices
    amounts = torch.rand(count, ACTIVE, generator=generator) + 0.5
    codes = torch.zeros(count, CAUSES).scatter(1, chosen, amounts)
    return codes @ directions() + offset, codes


class Toy(nn.Module):
    """A convolution, ReLU, and a head of one of three kinds."""

    def __init__(self, head: str = "affine", width: int = 8, classes: int = 5) -> None:
        super().__init__()
        generator = torch_generator(2, "toy")
        self.conv = nn.Conv2d(3, width, 3, 2, 1)
        self.act = nn.ReLU()
        self.mix = nn.Conv2d(width, width, 1)
        self.act2 = nn.ReLU()
        self.kind = head
        self.fc = nn.Linear(width, classes)
        self.hidden = nn.Linear(width, width)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.act2(self.mix(self.act(self.conv(x))))
        pooled = z.mean((2, 3))
        if self.kind == "mlp":
            pooled = torch.tanh(self.hidden(pooled))
        return self.fc(pooled)


def toy(head: str = "affine", **options: object) -> Classifier:
    torch.manual_seed(0)
    return Classifier(
        Toy(head).double(), size=8, mean=(0.5,) * 3, std=(0.25,) * 3, class_names=list("abcde"), name="toy", **options
    )


def pictures(count: int = 6, seed: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch_generator(seed, "pictures"), dtype=torch.float64)


def random_dictionary(
    width: int,
    latents: int = 20,
    k: int = 4,
    *,
    centred: bool = False,
    origin: Origin | None = None,
    kind: str = "topk",
) -> Dictionary:
    generator = torch_generator(4, "dictionary", kind)
    decoder = normalize(torch.randn(latents, width, generator=generator), dim=1)
    encoder = decoder + 0.3 * torch.randn(latents, width, generator=generator)
    return Dictionary(
        encoder,
        decoder,
        DictionarySettings(kind=kind, k=k, bias=centred, centre=centred),
        bias=0.1 * torch.randn(latents, generator=generator) if centred else None,
        mean=torch.rand(width, generator=generator) if centred else None,
        threshold=torch.full((latents,), 0.3) if kind != "topk" else None,
        origin=origin,
    )


def of(classifier: Classifier, *, pooled: bool = False, **options: object) -> Dictionary:
    """A random dictionary of a classifier's features."""
    return random_dictionary(classifier.width, origin=Origin.of(classifier, pooled=pooled), **options)  # type: ignore[arg-type]
