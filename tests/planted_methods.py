"""Words and map methods of another author, right and wrong ones, for the benchmark's tests."""

from __future__ import annotations

import numpy as np

from whylens.types import HeatMap, Phrase, Words


def _words(texts, score=1.0):
    phrases = tuple(Phrase(t, "g", score - i, 0.0, 0.0, 0.0, None, 0.0, None, None, None) for i, t in enumerate(texts))
    return Words("own", "own@1", {}, 0, None, phrases)


class FirstPhrases:
    """Always the first phrases of the bank; has no setting k."""

    kind = "words"

    def __call__(self, lens, images, targets=None, *, contrasts=None, seed=0):
        return [_words(lens.bank.phrases[:3]) for _ in images]


class Raises:
    kind = "words"

    def __call__(self, lens, images, targets=None, *, contrasts=None, seed=0):
        raise RuntimeError("this method is broken\nin two lines")


class TooFew:
    kind = "words"

    def __call__(self, lens, images, targets=None, *, contrasts=None, seed=0):
        return [_words(lens.bank.phrases[:3]) for _ in images[1:]]


class NotANumber:
    kind = "words"

    def __call__(self, lens, images, targets=None, *, contrasts=None, seed=0):
        return [_words(lens.bank.phrases[:3], float("nan")) for _ in images]


class RedMap:
    """The red channel."""

    kind = "map"

    def __call__(self, classifier, images, targets=None, *, contrasts=None, seed=0):
        return [HeatMap("red", "red@1", {}, 0, None, picture[0].numpy().astype(np.float32)) for picture in images]


class WrongSize:
    kind = "map"

    def __call__(self, classifier, images, targets=None, *, contrasts=None, seed=0):
        return [HeatMap("red", "red@1", {}, 0, None, picture[0, 1:].numpy()) for picture in images]


class NaNMap:
    kind = "map"

    def __call__(self, classifier, images, targets=None, *, contrasts=None, seed=0):
        return [HeatMap("red", "red@1", {}, 0, None, picture[0].numpy() * np.nan) for picture in images]


class FirstLatent:
    """A trace that knows one latent: the mean of the picture; what the logit is beyond it remains."""

    kind = "trace"

    def __call__(self, lens, images, targets=None, *, contrasts=None, seed=0):
        from whylens.types import Contribution, Trace

        logits = lens.classifier.logits(images).detach().double()
        found = []
        for n, picture in enumerate(images):
            target = int(targets[n])
            total = float(logits[n, target] - (0 if contrasts is None else logits[n, int(contrasts[n])]))
            value = 1e-3 * float(picture.mean())
            found.append(
                Trace(
                    "first",
                    "first@1",
                    {},
                    target,
                    None,
                    (Contribution(0, value, "mean", 1.0),),
                    {"rest": total - value},
                    total,
                )
            )
        return found
