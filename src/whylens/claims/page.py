"""The page of claims: a table of verdicts, then every claim with its effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whylens.claims.finding import Claim, Effect, Finding
from whylens.claims.world import ClaimPlan, network_label


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
    # Where a checkpoint lies is the reader's own affair.
    plain = {**plan.to_dict(), "networks": [network_label(source) for source in plan.networks]}
    lines += ["", f"Plan: {', '.join(f'{key} {_said(value)}' for key, value in plain.items())}.", ""]
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
            *_table(finding),
        ]
    lines += [item for note in finding.notes for item in ("", note)]
    return lines


def _table(finding: Finding) -> list[str]:
    """Comparisons and networks, the more numerous ones downwards; deciding comparisons are bold."""
    comparisons = list(dict.fromkeys(effect.comparison for effect in finding.effects))
    networks = list(dict.fromkeys(effect.network for effect in finding.effects))
    cells = {(e.comparison, e.network): _cell(e) for e in finding.effects}
    decides = {e.comparison for e in finding.effects if e.decides}
    titles = {c: f"**{c}**" if c in decides else c for c in comparisons} | {n: f"`{n}`" for n in networks}
    across, down = (networks, comparisons) if len(networks) <= len(comparisons) else (comparisons, networks)
    lines = [f"| {finding.unit} | " + " | ".join(titles[name] for name in across) + " |"]
    lines.append("|---" * (1 + len(across)) + "|")
    for row in down:
        found = (cells.get((row, name)) or cells.get((name, row)) or "–" for name in across)
        lines.append(f"| {titles[row]} | " + " | ".join(found) + " |")
    return lines


def _cell(effect: Effect) -> str:
    if effect.mean is None:
        return "–"
    if effect.low is None or effect.high is None:
        return f"{effect.mean:+.2f}"
    return f"{effect.mean:+.2f} ({effect.low:+.2f} to {effect.high:+.2f})"
