"""The page of claims: a table of verdicts, then every claim with its effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whylens.claims.finding import Claim, Effect, Finding
from whylens.claims.world import ClaimPlan


def claims_page(findings: Sequence[Finding], claims: Mapping[str, Claim], plan: ClaimPlan) -> str:
    """Markdown of all findings."""
    lines = [
        "| claim | from | verdict | what that means |",
        "|---|---|---|---|",
    ]
    for finding in findings:
        claim = claims[finding.claim]
        lines.append(
            f"| [{claim.statement}](#{finding.claim}) | {claim.source} | **{finding.verdict}** | {finding.meaning} |"
        )
    for finding in findings:
        lines += ["", *_section(finding, claims[finding.claim])]
    lines += ["", f"Plan: {', '.join(f'{key} {_said(value)}' for key, value in plan.to_dict().items())}.", ""]
    return "\n".join(lines)


def _said(value: object) -> str:
    if value is None:
        return "–"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _section(finding: Finding, claim: Claim) -> list[str]:
    lines = [
        f"## {finding.claim}",
        "",
        f"{claim.statement} ({claim.source})",
        "",
        f"**{finding.verdict}.** {finding.meaning}",
    ]
    lines += ["", f"Test: {claim.test}"]
    if finding.effects:
        lines += [
            "",
            f"Networks: {finding.networks}. Pictures: {finding.pictures}. Protocol: `{finding.protocol}`.",
            "",
            f"| {finding.unit} | " + " | ".join(_networks(finding)) + " |",
            "|---" * (1 + len(_networks(finding))) + "|",
        ]
        for comparison in dict.fromkeys(effect.comparison for effect in finding.effects):
            own = {e.network: e for e in finding.effects if e.comparison == comparison}
            decides = any(e.decides for e in own.values())
            name = f"**{comparison}**" if decides else comparison
            cells = [_cell(own[network]) if network in own else "–" for network in _networks(finding)]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [item for note in finding.notes for item in ("", note)]
    return lines


def _networks(finding: Finding) -> list[str]:
    return list(dict.fromkeys(effect.network for effect in finding.effects))


def _cell(effect: Effect) -> str:
    if effect.mean is None:
        return "–"
    if effect.low is None or effect.high is None:
        return f"{effect.mean:+.2f}"
    return f"{effect.mean:+.2f} ({effect.low:+.2f} to {effect.high:+.2f})"
