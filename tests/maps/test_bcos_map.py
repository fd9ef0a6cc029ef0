"""A B-cos network's own map: the pixels' contributions, which add up to what was asked."""

import pytest
import torch
from map_networks import Cnn, classifier, pictures, seeded
from torch import nn

from whylens.bcos import AddInverse, BcosConv2d, LogitLayer, SmallBcosResNet
from whylens.classifiers import Classifier
from whylens.errors import ModelError
from whylens.maps import Bcos

SIZE = (16, 24)


def calibrated(make):
    """Norms that know the scale of what comes in, so that no signal fades."""
    network = seeded(make).train()
    with torch.no_grad():
        for seed in range(30):
            network(pictures(4, SIZE, seed=seed))
    return Classifier(network.eval(), size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), link="sigmoid")


@pytest.fixture(scope="module")
def small():
    return calibrated(lambda: SmallBcosResNet(5, (4, 6, 8), (0, 1)))


@pytest.mark.parametrize("contrasts", [None, (1, 3)])
def test_the_map_adds_up_to_what_was_asked(small, contrasts):
    x, targets = pictures(2, SIZE, seed=9), torch.tensor([0, 4])
    against = None if contrasts is None else torch.tensor(contrasts)
    found = Bcos()(small, x, targets, contrasts=against)
    logits = small.logits(x).detach()
    bias = next(m for m in small.module.modules() if isinstance(m, LogitLayer)).logit_bias
    for i, heat in enumerate(found):
        asked = float(logits[i, targets[i]])
        asked -= float(bias) if against is None else float(logits[i, against[i]])
        scale = float(abs(heat.array).sum())
        assert heat.array.sum() == pytest.approx(asked, abs=1e-4 * scale)
        assert scale > 1e-4
        assert heat.passes == 1.0


class OneWindow(nn.Module):
    """B-cos patches of one rectangle of the picture, averaged."""

    def __init__(self):
        super().__init__()
        self.encode = AddInverse()
        self.patches = BcosConv2d(6, 3, kernel_size=4, stride=4)
        self.logits = LogitLayer(logit_bias=-1.0)

    def forward(self, x):
        return self.logits(self.patches(self.encode(x))[:, :, 1:3, 2:4].mean((2, 3)))


def test_pixels_that_no_unit_sees_contribute_nothing():
    model = Classifier(seeded(OneWindow).eval(), size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), link="sigmoid")
    array = Bcos()(model, pictures(1, SIZE))[0].array
    assert abs(array[4:12, 8:16]).min() > 0
    array[4:12, 8:16] = 0
    assert abs(array).max() == 0


def test_ordinary_networks_are_refused():
    with pytest.raises(ModelError, match="integrated_gradients"):
        Bcos()(classifier(seeded(Cnn), size=SIZE), pictures(1, SIZE))


class Squared(OneWindow):
    """With an operation that no B-cos layer holds."""

    def forward(self, x):
        return self.logits(self.patches(self.encode(x)).square().mean((2, 3)))


def test_a_sum_that_misses_the_logit_is_refused():
    model = Classifier(seeded(Squared).eval(), size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), link="sigmoid")
    with pytest.raises(ModelError, match="Squared is not linear"):
        Bcos()(model, pictures(1, SIZE))
