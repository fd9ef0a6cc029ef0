"""Concept banks written by language models: one question a class name, or one a picture, until enough is said.

Every answer is kept on disk as it comes, so that an interrupted or limited run goes on where it stopped, and a complete
one runs again without any model. The answers are filtered by :mod:`whylens.banks.generation_audit`, which accounts for
every phrase left out. The order of the bank is that of the subjects and of the phrases in the answers, whatever came
from where and when.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from whylens.banks.generation_audit import GeneratedBank, Subject, filter_phrases
from whylens.banks.generation_cache import Answer, AnswerCache, default_cache
from whylens.banks.generation_limits import LimitReachedError, Limits, Meter, estimate_tokens
from whylens.banks.generation_parsing import Found, read_answer
from whylens.banks.generation_prompts import PROMPT_VERSION, Message, class_messages, picture_messages
from whylens.banks.generation_subjects import Asked, Recipe, as_jpeg, gather_subjects
from whylens.errors import InputError, WhylensError

# A model that answers nonsense to so many subjects in a row is not worth its cost.
NONSENSE_IN_A_ROW = 3
_KNOWN_SHOWN = 200

Progress = Callable[[int, int], None]


class LanguageModel(Protocol):
    """What generation needs of a model: :class:`Endpoint` and :class:`LocalModel` are such, and so may be your own."""

    @property
    def parallel(self) -> bool:
        """Whether several questions may be asked at once."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that tells its answers from those of another model, as JSON types, with a ``name``."""

    def complete(
        self, messages: Sequence[Message], *, answer_tokens: int, temperature: float, seed: int, meter: Meter
    ) -> Answer:
        """One answer, its cost counted by the meter."""


@dataclass(frozen=True)
class Plan:
    """What a run would need, told before anything is spent.

    Attributes:
        subjects: class names and pictures, repeated ones once.
        complete: subjects whose answers are all in the cache.
        calls: fewest requests still needed; most_calls: with every round, without retries.
        tokens: estimate for the fewest requests, with answers of full length.
        limits: of the run.
        others: models of other configurations that the cache folder holds, with their numbers of answers.
    """

    subjects: int
    complete: int
    calls: int
    most_calls: int
    tokens: int
    limits: Limits
    others: Mapping[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """The plan in a few lines for people."""
        calls = "no limit" if self.limits.calls is None else f"at most {self.limits.calls}"
        tokens = "no limit" if self.limits.tokens is None else f"at most {self.limits.tokens}"
        lines = [
            f"{self.subjects} subjects, {self.complete} of them complete in the cache.",
            f"Needed: {self.calls} to {self.most_calls} calls (limit: {calls}), and up to about {self.tokens} tokens for "
            f"the first {self.calls} (limit: {tokens}).",
        ]
        if (self.limits.calls is not None and self.calls > self.limits.calls) or (
            self.limits.tokens is not None and self.tokens > self.limits.tokens
        ):
            lines.append("The limits may stop this run before its end; answers are kept, and a further run goes on.")
        if self.others:
            held = ", ".join(f"{count} of {model}" for model, count in self.others.items())
            lines.append(f"The cache also holds answers of other configurations, which are not used: {held}.")
        return "\n".join(lines)


def generate_bank(
    class_names: Sequence[str],
    model: LanguageModel,
    *,
    pictures: Sequence[str | os.PathLike[str]] = (),
    ask_classes: bool = True,
    recipe: Recipe | None = None,
    limits: Limits | None = None,
    cache: str | os.PathLike[str] | None = None,
    offline: bool = False,
    partial: bool = False,
    workers: int = 1,
    name: str = "generated",
    max_words: int = 3,
    near: bool = True,
    similarity: float = 0.9,
    progress: Progress | None = None,
) -> GeneratedBank:
    """Let a model write a concept bank.

    Args:
        class_names: of the classifier; repeated names are asked about once. Phrases that hold one of them as whole
            words are left out, whichever subject they are about.
        model: an :class:`Endpoint`, a :class:`LocalModel`, or one of your own.
        pictures: picture files for a vision-language model; each is asked about without its class.
        ask_classes: ask about the class names too; False asks about the pictures only.
        recipe: how the questions are asked.
        limits: what the run may cost at most.
        cache: folder of kept answers; ``$WHYLENS_CACHE/generation`` or ``~/.cache/whylens/generation`` by default.
        offline: use kept answers only, and no model.
        partial: where a limit is reached, make the bank of what there is instead of raising.
        workers: questions asked at once, where the model allows it.
        name: of the bank.
        max_words: phrases of more words are left out.
        near: also leave out near duplicates.
        similarity: how alike those must be, see :meth:`~whylens.banks.ConceptBank.without_duplicates`.
        progress: called with (subjects done, subjects in all).

    Raises:
        InputError: no subjects, fewer than two phrases left (the message names the filters), a key that is not set, or
            offline answers that are missing.
        LimitReachedError: when the next call could exceed a limit; the same call goes on afterwards.
        EndpointError: when the endpoint gave no usable answer.
        WhylensError: when the model answers nonsense to three subjects in a row, or to all.

    Cost: one to ``rounds`` calls a subject, none for subjects whose answers are kept; see :func:`plan_generation`.
    """
    recipe, limits = recipe or Recipe(), limits or Limits()
    if workers < 1:
        raise InputError(f"workers must be at least 1; it is {workers}.")
    if max_words < 1:
        raise InputError(f"max_words must be at least 1; it is {max_words}.")
    subjects = gather_subjects(class_names, pictures, ask_classes, recipe)
    configuration = _configuration(model, recipe)
    kept = AnswerCache(default_cache() if cache is None else Path(cache).expanduser())
    meter = Meter(limits)
    run = _Run(model, recipe, configuration, kept, meter, offline)
    told, stopped = _ask_all(run, subjects, workers if model.parallel else 1, progress)
    if offline and stopped is not None and not (partial and any(told)):
        missing = sum(said is None for said in told)
        raise InputError(
            f"{missing} of {len(subjects)} subjects have no complete answers in the cache {kept.folder}, and no model "
            f"may be asked (offline). The first: {subjects[told.index(None)].name!r}."
            + _other_note(kept.other_configurations(configuration))
        )
    done = [said for said in told if said is not None]
    if stopped is not None and not (partial and done):
        raise LimitReachedError(
            f"{stopped} {len(done)} of {len(subjects)} subjects are complete and their answers are kept in "
            f"{kept.folder}: the same command goes on from there; a limit counts each run by itself."
        )
    if not any(said.found for said in done):
        note = next((said.subject.note for said in done if said.subject.note), "no phrase in any answer")
        raise WhylensError(f"No usable phrase came from {model.identity['name']!r}: {note}")
    rows = [(item.phrase, item.group, said.source(model)) for said in done for item in said.found]
    bank, removed = filter_phrases(
        rows, class_names=class_names, name=name, max_words=max_words, near=near, similarity=similarity
    )
    left = [
        replace(Subject(s.kind, s.name, s.sha256), note="not asked: a limit was reached, or offline")
        for s, said in zip(subjects, told, strict=True)
        if said is None
    ]
    return GeneratedBank(
        bank=bank,
        removed=removed,
        subjects=(*(said.subject for said in done), *left),
        cost=meter.cost,
        configuration=configuration,
        rebuilt=tuple(path.name for path in kept.damaged),
        settings={"max_words": max_words, "near": near, "similarity": similarity, "class_names": list(class_names)},
    )


def plan_generation(
    class_names: Sequence[str],
    model: LanguageModel,
    *,
    pictures: Sequence[str | os.PathLike[str]] = (),
    ask_classes: bool = True,
    recipe: Recipe | None = None,
    limits: Limits | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Plan:
    """What :func:`generate_bank` would need with the same arguments; asks no model.

    Raises:
        InputError: when there is nothing to ask about.
    """
    recipe, limits = recipe or Recipe(), limits or Limits()
    subjects = gather_subjects(class_names, pictures, ask_classes, recipe)
    configuration = _configuration(model, recipe)
    kept = AnswerCache(default_cache() if cache is None else Path(cache).expanduser())
    run = _Run(model, recipe, configuration, kept, Meter(limits), offline=True)
    complete = calls = most = tokens = 0
    for subject in subjects:
        try:
            run.ask(subject)
            complete += 1
        except _NotKeptError as missing:
            calls += 1
            most += recipe.rounds - missing.answers
            tokens += missing.tokens + recipe.answer_tokens
    return Plan(len(subjects), complete, calls, most, tokens, limits, kept.other_configurations(configuration))


@dataclass(frozen=True, eq=False)
class _Said:
    """A finished subject and what was said about it."""

    subject: Subject
    found: tuple[Found, ...]

    def source(self, model: LanguageModel) -> str:
        return f"{model.identity['name']} on {self.subject.kind} {self.subject.name}"


class _NotKeptError(Exception):
    """Offline, and an answer is not in the cache."""

    def __init__(self, answers: int, tokens: int) -> None:
        super().__init__("offline")
        self.answers, self.tokens = answers, tokens


@dataclass(eq=False)
class _Run:
    model: LanguageModel
    recipe: Recipe
    configuration: Mapping[str, Any]
    cache: AnswerCache
    meter: Meter
    offline: bool

    def ask(self, subject: Asked) -> _Said:
        """Ask about a subject until enough different phrases are said, or nothing new comes, or rounds are used up."""
        if subject.problem:
            return _Said(Subject(subject.kind, subject.name, subject.sha256, note=subject.problem), ())
        said: list[Found] = []
        found: dict[str, None] = {}
        answers = from_cache = 0
        note = ""
        while answers < self.recipe.rounds and len(found) < subject.wanted:
            missing = subject.wanted - len(found)
            # The whole list would crowd out the question in the end.
            known = list(found)[-_KNOWN_SHOWN:]
            question = {
                "kind": subject.kind,
                "subject": subject.sha256 or subject.name,
                "count": missing,
                "known": known,
            }
            answer = self.cache.get(self.configuration, question)
            from_cache += answer is not None
            if answer is None:
                answer = self._fresh(subject, missing, known, answers)
                # A further answer may say that there is nothing more; a first one that says nothing is nonsense.
                if answers == 0 and not read_answer(answer.text):
                    note = f"answer {answers + 1} held no phrase: {' '.join(answer.text.split())[:80]!r}"
                    answers += 1
                    break
                self.cache.put(self.configuration, question, answer)
            phrases = read_answer(answer.text)
            answers += 1
            said += phrases
            before = len(found)
            found.update(dict.fromkeys(item.phrase for item in phrases))
            if len(found) == before:
                break
        if not note and len(found) < subject.wanted:
            note = f"{len(found)} different phrases of {subject.wanted} wanted after {answers} answer(s)"
        account = Subject(subject.kind, subject.name, subject.sha256, answers, from_cache, len(said), note)
        # Repeats too: the filters account for them.
        return _Said(account, tuple(said))

    def _fresh(self, subject: Asked, count: int, known: Sequence[str], answers: int) -> Answer:
        if subject.path is None:
            messages = class_messages(subject.name, count, known)
        else:
            messages = picture_messages(as_jpeg(subject.path, self.recipe.picture_side), count, known)
        if self.offline:
            raise _NotKeptError(answers, estimate_tokens(messages))
        recipe = self.recipe
        return self.model.complete(
            messages,
            answer_tokens=recipe.answer_tokens,
            temperature=recipe.temperature,
            seed=recipe.seed,
            meter=self.meter,
        )


def _ask_all(
    run: _Run, subjects: Sequence[Asked], workers: int, progress: Progress | None
) -> tuple[list[_Said | None], Exception | None]:
    """What was said about every subject, None for those that a limit (or being offline) kept from being asked."""
    told: list[_Said | None] = [None] * len(subjects)
    stop = threading.Event()
    done = nonsense = 0
    stopped: Exception | None = None

    def one(subject: Asked) -> _Said | Exception | None:
        if stop.is_set():
            return None
        try:
            return run.ask(subject)
        except (LimitReachedError, _NotKeptError) as error:
            return error

    def take(number: int, result: _Said | Exception | None) -> None:
        nonlocal done, nonsense, stopped
        if isinstance(result, Exception):
            stopped = stopped or result
            # Kept answers of later subjects still count.
            return
        told[number] = result
        if result is None:
            return
        done += 1
        if progress is not None:
            progress(done, len(subjects))
        nonsense = 0 if result.found or result.subject.answers == 0 else nonsense + 1
        if nonsense >= NONSENSE_IN_A_ROW:
            raise WhylensError(
                f"{run.model.identity['name']!r} gave no phrase for {nonsense} subjects in a row; the last, "
                f"{result.subject.name!r}: {result.subject.note}. Is it the right kind of model?"
            )

    if workers == 1:
        for number, subject in enumerate(subjects):
            take(number, one(subject))
        return told, stopped
    with ThreadPoolExecutor(workers, thread_name_prefix="whylens-generate") as pool:
        waiting = [pool.submit(one, subject) for subject in subjects]
        try:
            for number, future in enumerate(waiting):
                take(number, future.result())
        except BaseException:
            # Also Ctrl-C: questions that wait are not asked any more; those under way end and are kept.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return told, stopped


def _configuration(model: LanguageModel, recipe: Recipe) -> dict[str, Any]:
    # The numbers of phrases stand in each question, and rounds change no answer: raising them reuses what is kept.
    parameters = {
        "answer_tokens": recipe.answer_tokens,
        "temperature": float(recipe.temperature),
        "picture_side": recipe.picture_side,
        "seed": recipe.seed,
    }
    return {"model": model.identity, "prompt_version": PROMPT_VERSION, "parameters": parameters}


def _other_note(others: Mapping[str, int]) -> str:
    if not others:
        return ""
    return " The folder holds answers of other configurations: " + ", ".join(f"{n} of {m}" for m, n in others.items())
