"""The answer in a sentence, made of supported phrases only, or an honest sentence where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from whylens.types import Explanation, Phrase, Words

# The usual level of a family-wise test; a method that tests at another one says so in its setting `level`.
LEVEL = 0.05
NAMED_FOR, NAMED_AGAINST = 4, 2


class Verdict(Enum):
    """What the control says of a phrase."""

    SUPPORTED = "supported"
    CHANCE = "not distinguishable from chance"
    ABSENT = "beats chance, but is not clearly present here"
    UNTESTED = "not tested"


def level(words: Words) -> float:
    """The family-wise level at which phrases were tested."""
    value = words.settings.get("level", LEVEL)
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1 else LEVEL


def verdict(phrase: Phrase, at: float = LEVEL) -> Verdict:
    """The verdict on one phrase; ``at`` is the level of the test, which tells the two reasons for failing apart."""
    if phrase.supported is None:
        return Verdict.UNTESTED
    if phrase.supported:
        return Verdict.SUPPORTED
    return Verdict.ABSENT if phrase.p_value is not None and phrase.p_value <= at else Verdict.CHANCE


@dataclass(frozen=True)
class Span:
    """A stretch of a sentence: plain words, the name of a class, or a phrase for or against."""

    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Sentence:
    """A sentence whose class names and phrases can be set apart; ``tested`` is false where it rests on no control."""

    spans: tuple[Span, ...]
    tested: bool
    found: bool

    def __str__(self) -> str:
        return "".join(f"“{s.text}”" if s.kind in ("for", "against") else s.text for s in self.spans)


def class_name(explanation: Explanation, index: int) -> str:
    """The name of a class that the explanation mentions, else ``class 17``."""
    known = [explanation.target, *explanation.prediction.top]
    if explanation.contrast is not None:
        known.append(explanation.contrast)
    return next((score.name for score in known if score.index == index), f"class {index}")


def headline(explanation: Explanation) -> Words | None:
    """The words that answer the question asked: the first that are about this picture, else the first of all."""
    asked = explanation.contrast.index if explanation.contrast is not None else None
    fitting = [words for words in explanation.results.values() if words.contrast == asked]
    candidates = fitting or list(explanation.results.values())
    return next((words for words in candidates if not words.class_level), candidates[0] if candidates else None)


def against_runner_up(explanation: Explanation) -> Words | None:
    """The words about the contrast, where the main answer is not about one."""
    main = headline(explanation)
    if main is None or main.contrast is not None:
        return None
    return next((words for words in explanation.results.values() if words.contrast is not None), None)


def supported(phrases: Sequence[Phrase]) -> tuple[Phrase, ...]:
    """The phrases that passed the control."""
    return tuple(p for p in phrases if p.supported)


def question(explanation: Explanation, words: Words) -> str:
    """The question that these words answer."""
    target = class_name(explanation, words.target)
    rather = "" if words.contrast is None else f" rather than {class_name(explanation, words.contrast)}"
    if explanation.prediction.top and explanation.prediction.top[0].index != words.target:
        return f"What speaks for {target}{rather}?"
    return f"Why {target}{rather}?"


def quantity(explanation: Explanation, words: Words) -> str:
    """What the scores are about, in terms of logits."""
    target = class_name(explanation, words.target)
    if words.contrast is None:
        return f"the logit of {target}"
    return f"the logit of {target} minus that of {class_name(explanation, words.contrast)}"


def answer(explanation: Explanation, words: Words) -> Sentence:
    """The plain sentence that answers :func:`question`.

    Only phrases that passed the control are given as reasons. Where none passed, or no control was run, the sentence
    says that instead.
    """
    said = not explanation.prediction.top or explanation.prediction.top[0].index == words.target
    subject = _subject(explanation, words)
    gap = [Span("to why it said " if said else "for "), *subject]
    every = (*words.phrases, *words.suppressing)
    if not every:
        lead = "This method returned no phrase, so there is no " + ("answer" if said else "evidence") + " in words "
        return Sentence((Span(lead), *gap, Span(".")), False, False)
    if all(p.supported is None for p in every):
        first, kind = (words.phrases, "for") if words.phrases else (words.suppressing, "against")
        noun, verb = ("phrase", " is ") if len(first) == 1 else ("phrases", " are ")
        lead = f"No control was run, so this is untested: the strongest {noun} {kind} "
        return Sentence(
            (Span(lead), *subject, Span(verb), *_listed(first[:NAMED_FOR], kind, NAMED_FOR), Span(".")), False, True
        )
    reasons, objections = supported(words.phrases), supported(words.suppressing)
    if not reasons:
        what = "answer" if said else "evidence"
        spans = [Span(f"No supporting phrase passed the control, so there is no tested {what} in words "), *gap]
        if objections:
            spans += [Span(f"; against it {_speak(objections)} "), *_listed(objections, "against", NAMED_AGAINST)]
        return Sentence((*spans, Span(".")), True, False)
    listed = _listed(reasons, "for", NAMED_FOR)
    if words.class_level:
        spans = [Span("For every picture alike, "), *listed, Span(f" {_speak(reasons)} for "), *subject]
        return Sentence((*spans, Span(".")), True, True)
    if said:
        spans = [Span("It said "), *subject, Span(" because of "), *listed]
    else:
        spans = [Span("For "), *subject, Span(f" {_speak(reasons)} "), *listed]
    if objections:
        spans += [Span("; "), *_listed(objections, "against", NAMED_AGAINST), Span(_spoke(explanation, words))]
    return Sentence((*spans, Span(".")), True, True)


def _subject(explanation: Explanation, words: Words) -> list[Span]:
    target = Span(class_name(explanation, words.target), "class")
    if words.contrast is None:
        return [target]
    return [target, Span(" rather than "), Span(class_name(explanation, words.contrast), "class")]


def _speak(phrases: Sequence[Phrase]) -> str:
    return "speaks" if len(phrases) == 1 else "speak"


def _spoke(explanation: Explanation, words: Words) -> str:
    return " spoke against it" if words.contrast is None else f" spoke for {class_name(explanation, words.contrast)}"


def _listed(phrases: Sequence[Phrase], kind: str, limit: int) -> list[Span]:
    named = [Span(p.text, kind) for p in phrases[:limit]]
    rest = len(phrases) - len(named)
    spans: list[Span] = []
    for position, span in enumerate(named):
        if position:
            last = position == len(named) - 1 and not rest
            spans.append(Span(" and " if last else ", "))
        spans.append(span)
    if rest:
        spans.append(Span(f" and {rest} more"))
    return spans
