"""Claims about concept traces."""

from __future__ import annotations

from whylens.claims.world import ClaimTest

CONCEPT_CLAIMS: tuple[ClaimTest, ...] = ()
