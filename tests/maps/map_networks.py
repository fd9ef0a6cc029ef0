"""Small networks whose maps can be worked out by other means."""

import torch
from torch import nn
from torch.nn import functional

from whylens.classifiers import Classifier

SIZE = (12, 16)


def classifier(module, size=SIZE, **settings):
    """Pictures reach the network as they are: mean 0, deviation 1."""
    return Classifier(module.eval(), size=size, mean=(0, 0, 0), std=(1, 1, 1), **settings)


def pictures(count=2, size=SIZE, seed=0):
    return torch.rand((count, 3, *size), generator=torch.Generator().manual_seed(seed))


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def shaken(make, by=0.2):
    """Heads and scales that are zero at the start would hide what the logits depend on."""
    model = seeded(make)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return model.eval()


class Cnn(nn.Module):
    """Two convolutions, an activation after each, global average, linear head."""

    def __init__(self, activation=nn.ReLU, pool=False, classes=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.act1 = activation()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.act2 = activation()
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.act2(self.conv2(self.pool(self.act1(self.conv1(x))))).mean((2, 3)))


class OtherCalls(nn.Module):
    """The weights of a Cnn with its ReLUs called in another way."""

    def __init__(self, cnn, how):
        super().__init__()
        self.cnn, self.how = cnn, how
        self.relu = nn.ReLU(inplace=True)

    def act(self, z):
        if self.how == "functional":
            return functional.relu(z)
        if self.how == "method":
            return z.relu()
        if self.how == "reused module in place":
            return self.relu(z)
        if self.how == "result ignored":
            functional.relu_(z)
            return z
        return torch.relu(z)

    def forward(self, x):
        z = self.cnn.pool(self.act(self.cnn.conv1(x)))
        return self.cnn.fc(self.act(self.cnn.conv2(z)).mean((2, 3)))


class Linear(nn.Module):
    """Logits linear in the pixels."""

    def __init__(self, classes=3, size=SIZE):
        super().__init__()
        self.shape = (classes, 3, *size)
        self.fc = seeded(lambda: nn.Linear(3 * size[0] * size[1], classes, bias=False))

    @property
    def weight(self):
        return self.fc.weight.detach().reshape(self.shape)

    def forward(self, x):
        return self.fc(x.flatten(1))


class Quadratic(Linear):
    """Logits quadratic in the pixels."""

    def forward(self, x):
        return super().forward(x.square())


class Window(nn.Module):
    """Keeps one rectangle of a map."""

    def __init__(self, size, box):
        super().__init__()
        top, left, bottom, right = box
        shown = torch.zeros(size)
        shown[top:bottom, left:right] = 1
        self.register_buffer("shown", shown)

    def forward(self, x):
        return x * self.shown


class OnePatch(nn.Module):
    """Looks at one rectangle of the picture only: the brighter it is, the surer is class 0."""

    def __init__(self, size, box):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.relu = nn.ReLU()
        self.window = Window(size, box)
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[1.0, 1, 1], [2, 0, 1]]).reshape(2, 3, 1, 1) / 3)
            self.conv.bias.fill_(-0.1)
            area = (box[2] - box[0]) * (box[3] - box[1]) / (size[0] * size[1])
            self.fc.weight.copy_(torch.tensor([[3.0, 2.0], [-1.0, -1.0]]) / area)
            self.fc.bias.copy_(torch.tensor([-1.0, 1.0]))

    def forward(self, x):
        return self.fc(self.window(self.relu(self.conv(x))).mean((2, 3)))
