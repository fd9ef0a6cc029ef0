"""Claims of the four papers, tested again with this library's own measurements."""

from whylens.claims.finding import Claim, Effect, Finding
from whylens.claims.run import CLAIMS, ClaimsRun, run_claims
from whylens.claims.world import ClaimPlan

__all__ = ["CLAIMS", "Claim", "ClaimPlan", "ClaimsRun", "Effect", "Finding", "run_claims"]
