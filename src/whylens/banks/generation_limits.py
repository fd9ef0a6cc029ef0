"""What a generation may cost, what it has cost, and stopping before more is spent."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from whylens.banks.generation_prompts import Message
from whylens.errors import InputError, WhylensError

# English text has about four characters a token; three keeps the estimate on the safe side.
CHARACTERS_A_TOKEN = 3
# A picture of 512 pixels costs from 85 to about 1,000 tokens, depending on the model.
PICTURE_TOKENS = 1000
MESSAGE_TOKENS = 8


class LimitReachedError(WhylensError):
    """The next call could exceed a limit; every answer so far is kept, and the same call goes on from there."""


@dataclass(frozen=True)
class Limits:
    """What one run may cost at most.

    Args:
        calls: requests sent, repeated ones included; None for no limit.
        tokens: of questions and answers together; None for no limit.

    Raises:
        InputError: for a limit under 1.
    """

    calls: int | None = 200
    tokens: int | None = 300_000

    def __post_init__(self) -> None:
        for name in ("calls", "tokens"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"The limit of {name} must be a whole number of at least 1, or None; it is {value!r}.")


@dataclass(frozen=True)
class Cost:
    """What was spent.

    Attributes:
        calls: requests sent.
        question_tokens, answer_tokens: as the model counted them, or estimated.
        estimated_calls: calls whose tokens were estimated, because the answer did not state them or never came.
    """

    calls: int = 0
    question_tokens: int = 0
    answer_tokens: int = 0
    estimated_calls: int = 0

    @property
    def tokens(self) -> int:
        """Of questions and answers together."""
        return self.question_tokens + self.answer_tokens


class Meter:
    """Counts the cost of one run and refuses what could exceed its limits. Safe for threads.

    A call is admitted only if its estimated question and its longest possible answer still fit; what it really cost
    replaces the estimate afterwards.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._cost = Cost()
        self._reserved = 0

    @property
    def cost(self) -> Cost:
        """What was spent so far."""
        with self._lock:
            return self._cost

    def admit(self, question_tokens: int, answer_tokens: int) -> int:
        """Reserve the tokens of one call, which counts from now on; returns the reservation for :meth:`settle`.

        Raises:
            LimitReachedError: when a limit does not allow it.
        """
        wanted = question_tokens + answer_tokens
        with self._lock:
            if self.limits.calls is not None and self._cost.calls >= self.limits.calls:
                raise LimitReachedError(f"The limit of {self.limits.calls} calls is reached.")
            committed = self._cost.tokens + self._reserved
            if self.limits.tokens is not None and committed + wanted > self.limits.tokens:
                raise LimitReachedError(
                    f"The limit of {self.limits.tokens} tokens is reached: {committed} are spent or under way, and the "
                    f"next call may need {wanted}."
                )
            self._reserved += wanted
            self._cost = replace(self._cost, calls=self._cost.calls + 1)
        return wanted

    def settle(self, reservation: int, question_tokens: int, answer_tokens: int, *, estimated: bool) -> None:
        """Replace a reservation by what the call cost."""
        with self._lock:
            self._reserved -= reservation
            self._cost = replace(
                self._cost,
                question_tokens=self._cost.question_tokens + question_tokens,
                answer_tokens=self._cost.answer_tokens + answer_tokens,
                estimated_calls=self._cost.estimated_calls + estimated,
            )


def estimate_tokens(messages: Sequence[Message]) -> int:
    """Tokens that messages may have; pictures count 1,000 each."""
    return sum(
        MESSAGE_TOKENS + estimate_text(message.text) + (PICTURE_TOKENS if message.picture is not None else 0)
        for message in messages
    )


def estimate_text(text: str) -> int:
    """Tokens that a text may have; letters outside Latin script count one each."""
    latin = sum(1 for c in text if ord(c) < 0x250)
    return -(-latin // CHARACTERS_A_TOKEN) + len(text) - latin
