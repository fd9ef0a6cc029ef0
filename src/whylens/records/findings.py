"""What verification found, each with its place."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """PASSED was checked and is right; REMARK is worth knowing and breaks nothing; FAILED does not verify."""

    PASSED = "passed"
    REMARK = "remark"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """One finding: where, and what about it."""

    level: Level
    place: str
    message: str


def passed(place: str, message: str) -> Finding:
    """A check that passed."""
    return Finding(Level.PASSED, place, message)


def remark(place: str, message: str) -> Finding:
    """Something to know that breaks nothing."""
    return Finding(Level.REMARK, place, message)


def failed(place: str, message: str) -> Finding:
    """Something that does not verify."""
    return Finding(Level.FAILED, place, message)
