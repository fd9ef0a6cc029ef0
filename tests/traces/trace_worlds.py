"""Small networks of every kind with random dictionaries, and slow references in double precision."""

import copy
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import normalize

from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary, DictionarySettings, Origin
from whylens.randomness import torch_generator
from whylens.traces import Traced

sys.path.insert(0, str(Path(__file__).parents[1] / "bcos"))
import bcos_zoo

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "link": "sigmoid"}


def bcos(name="small resnet", side=16):
    """A B-cos classifier in single precision, as users have it."""
    return Classifier(bcos_zoo.make(name, side).float(), size=side, name=name, **PLAIN)


def pictures(count=3, side=16, seed=0):
    return torch.rand(count, 3, side, side, generator=torch_generator(seed, "trace pictures"))


def dictionary_of(classifier, layer=None, *, latents=24, k=4, pooled=False, offset=False, seed=0):
    """A random dictionary of a layer; with an offset it has a mean and biases."""
    at = classifier if layer is None else classifier.at(layer)
    generator = torch_generator(seed, "trace dictionary", str(layer))
    decoder = normalize(torch.randn(latents, at.width, generator=generator), dim=1)
    encoder = decoder + 0.3 * torch.randn(latents, at.width, generator=generator)
    return Dictionary(
        encoder,
        decoder,
        DictionarySettings(k=k, bias=offset, centre=offset),
        bias=0.1 * torch.randn(latents, generator=generator) if offset else None,
        mean=0.2 * torch.rand(at.width, generator=generator) if offset else None,
        origin=Origin.of(at, pooled=pooled),
    )


def traced(classifier, *layers, **options):
    return Traced(classifier, tuple(dictionary_of(classifier, layer, **options) for layer in layers))


def in_double(classifier):
    """The same classifier with a network in double precision."""
    return Classifier(
        copy.deepcopy(classifier.module).double(),
        preprocessing=classifier.preprocessing,
        class_names=classifier.class_names,
        features=classifier.layer,
        link=classifier.link,
    )


class Everything(nn.Module):
    """Layers of every kind that a frozen pass holds, and biases wherever there can be some."""

    def __init__(self, width=8, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.norm = nn.BatchNorm2d(width)
        self.group = nn.GroupNorm(2, width)
        self.squeeze = nn.Conv2d(width, width, 1)
        self.body = nn.Conv2d(width, width, 3, 1, 1)
        self.layer = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.3)
        self.prelu, self.out = nn.PReLU(width), nn.Identity()
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = torch.relu_(self.norm(self.stem(x)))
        x = nn.functional.max_pool2d(x, 2)
        x = self.prelu(self.group(x))
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        x = x + nn.functional.silu(self.body(x))
        t = x.flatten(2).transpose(1, 2) + self.positions
        n = self.layer(t)
        t = t + self.attn(n, n, n, need_weights=False)[0]
        t = self.out(t + self.down(nn.functional.gelu(self.up(t))))
        return self.head(nn.functional.normalize(t, dim=-1).mean(1))


def everything():
    torch.manual_seed(0)
    network = Everything()
    with torch.no_grad():
        for value in network.parameters():
            if value.ndim == 1:
                value.uniform_(0.3, 1.2, generator=torch.Generator().manual_seed(len(value)))
    network.train()
    with torch.no_grad():
        for seed in range(20):
            network(pictures(8, seed=seed))
    return Classifier(network.eval(), size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
