"""Every registered trace method keeps the contract; methods that break it are caught."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from whylens.checks import check_trace_method
from whylens.errors import WhylensError
from whylens.registry import get_method, list_methods
from whylens.traces import Fact

sys.path.insert(0, str(Path(__file__).parents[1] / "traces"))
from trace_worlds import bcos, everything, pictures, traced

OURS = ("fact", "frozen_gate")


def test_these_are_all():
    assert set(OURS) <= set(list_methods("trace"))


@pytest.mark.parametrize("mode", ["residual", "replace"])
@pytest.mark.parametrize("name", OURS)
def test_registered_methods_keep_the_contract(name, mode):
    lens = traced(bcos(), "stages.0") if name == "fact" else traced(everything(), "prelu")
    check_trace_method(get_method(name).factory(mode=mode), lens, images=pictures(2))


class Wrong(Fact):
    """Broken in one way."""

    def __init__(self, *, how: str = "sum", layer=None, mode="residual", k=None):
        super().__init__(layer=layer, mode=mode, k=k)
        self.how = how

    def __call__(self, lens, images, targets=None, *, contrasts=None, seed=0, batch_size=8):
        if self.how == "mode":
            lens.classifier.module.eval()
        if self.how == "draws":
            torch.rand(1)
        traces = super().__call__(lens, images, targets, contrasts=None if self.how == "contrast" else contrasts)
        if self.how == "short":
            return traces[:-1]
        changes = {
            "sum": lambda t: {"total": t.total + 1},
            "order": lambda t: {"contributions": t.contributions[::-1]},
            "twice": lambda t: {"contributions": (t.contributions[0], *t.contributions)},
            "neighbours": lambda t: {"remainders": {**t.remainders, "n": len(images)}, "total": t.total + len(images)},
            "target": lambda t: {"target": 0},
        }
        change = changes.get(self.how)
        return traces if change is None else [dataclasses.replace(t, **change(t)) for t in traces]


@pytest.mark.parametrize("how", ["sum", "order", "twice", "neighbours", "target", "contrast", "short", "mode", "draws"])
def test_broken_promises_are_caught(how):
    lens = traced(bcos(), None)
    with pytest.raises(WhylensError, match="breaks the contract"):
        check_trace_method(Wrong(how=how), lens, images=pictures(2))
