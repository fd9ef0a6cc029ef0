"""Small synthetic lenses with known maps; heads of every kind."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from whylens.alignment import Aligner, AlignmentReport, Statistics
from whylens.banks import ConceptBank


class FeatureClassifier:
    """The classifier interface around a head, for tests that start from features."""

    def __init__(
        self, head: nn.Module, width: int, *, affine: bool, spatial: bool = False, link: str = "softmax"
    ) -> None:
        self.module = head
        self.width, self.spatial, self.link = width, spatial, link
        self.device = torch.device("cpu")
        self.affine_head = SimpleNamespace(weight=head.weight.detach(), bias=head.bias.detach()) if affine else None
        self.class_names = ()
        self.features_name = "input of the head"

    def head(self, z: Tensor) -> Tensor:
        return self.module(z)

    def pool(self, z: Tensor) -> Tensor:
        return z.flatten(2).mean(2) if z.ndim == 4 else z


class SpatialHead(nn.Module):
    """Convolution, ReLU, mean: SqueezeNet's head, which is not affine."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, classes, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv(z).relu().mean((2, 3))


def make_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return layer


class World:
    """Features made of concepts: z = mean + sum of present concepts' directions + noise, embeddings likewise."""

    def __init__(self, d: int = 24, m: int = 12, phrases: int = 12, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.d, self.m = d, m
        self.count = phrases
        basis, _ = torch.linalg.qr(self.randn(max(d, m), max(d, m)))
        self.map = basis[:d, :m]
        self.text = (
            normalize(torch.linalg.qr(self.randn(m, m))[0][:phrases] + 0.3, dim=1)
            if phrases <= m
            else normalize(self.randn(phrases, m) + 0.3, dim=1)
        )
        self.u_mean = 0.5 * torch.ones(m) / m**0.5
        self.z_mean = self.randn(d) * 0.2 + 1.0
        self.present, self.features, self.embeddings = self.sample(1500)
        report = AlignmentReport(0.9, 0.9, 0.9, 0.0, 0.0, 1500, 500)
        self.aligner = Aligner(
            weight=self.map.T.contiguous(),
            bias=self.u_mean - self.map.T @ self.z_mean,
            reverse_weight=self.map.contiguous(),
            reverse_bias=self.z_mean - self.map @ self.u_mean,
            feature_mean=self.z_mean,
            embedding_mean=self.u_mean,
            report=report,
        )

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def sample(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        present = torch.rand(count, self.count, generator=self.generator) < 0.25
        centred = self.text - self.text.mean(0)
        shift = (present.float() - 0.25) @ centred
        noise = 0.1 * self.randn(count, self.m)
        u = self.u_mean + shift + noise
        z = self.z_mean + (shift + 0.7 * noise) @ self.map.T + 0.05 * self.randn(count, self.d)
        return present, z, u

    def lens(self, classifier: object, text: Tensor | None = None, names: list[str] | None = None) -> SimpleNamespace:
        text = self.text if text is None else text
        names = names or [f"phrase {i}" for i in range(len(text))]
        bank = ConceptBank(
            phrases=tuple(names), groups=("g",) * len(names), sources=("test",) * len(names), name="world"
        )
        statistics = Statistics.compute(self.aligner, self.features[:800], self.embeddings[:800], text)
        return SimpleNamespace(
            classifier=classifier, aligner=self.aligner, bank=bank, embeddings=text, statistics=statistics
        )
