"""The page of claims: a table of verdicts, then every claim with its effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from whylens.claims.finding import Claim, Effect, Finding
from whylens.claims.world import ClaimPlan, network_label, split_network

CAPTION = (
    "Insertion and deletion against activation deviation, by clipping mode and network, with 95 % intervals; best is "
    "the upper left above and the lower left below"
)


def claims_page(
    findings: Sequence[Finding],
    claims: Mapping[str, Claim],
    plan: ClaimPlan,
    *,
    figures: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Markdown of all findings.

    Args:
        findings: in the order of the page.
        claims: by name.
        plan: of the run.
        figures: places of figures, beside the page, by claim.
    """
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
        lines += ["", *_section(finding, claims[finding.claim], figures.get(finding.claim))]
    # Where a checkpoint lies is the reader's own affair.
    plain = {**plan.to_dict(), "networks": [network_label(split_network(entry)[0]) for entry in plan.networks]}
    lines += ["", f"Plan: {', '.join(f'{key} {_said(value)}' for key, value in plain.items())}.", ""]
    return "\n".join(lines)


def _said(value: object) -> str:
    if value is None:
        return "–"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _section(finding: Finding, claim: Claim, figure: str | None) -> list[str]:
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
        ]
        if figure is not None:
            lines += ["", f"![{CAPTION}]({figure})", "", f"*{CAPTION}.*"]
        for measure in dict.fromkeys(effect.measure for effect in finding.effects):
            own = [effect for effect in finding.effects if effect.measure == measure]
            lines += ["", *_table(own, measure or finding.unit)]
    lines += [item for note in finding.notes for item in ("", note)]
    return lines


def _table(effects: Sequence[Effect], unit: str) -> list[str]:
    """Comparisons and networks, the more numerous ones downwards; deciding comparisons are bold."""
    comparisons = list(dict.fromkeys(effect.comparison for effect in effects))
    networks = list(dict.fromkeys(effect.network for effect in effects))
    cells = {(e.comparison, e.network): _cell(e) for e in effects}
    decides = {e.comparison for e in effects if e.decides}
    titles = {c: f"**{c}**" if c in decides else c for c in comparisons} | {n: f"`{n}`" for n in networks}
    across, down = (networks, comparisons) if len(networks) <= len(comparisons) else (comparisons, networks)
    lines = [f"| {unit} | " + " | ".join(titles[name] for name in across) + " |"]
    lines.append("|---" * (1 + len(across)) + "|")
    for row in down:
        found = (cells.get((row, name)) or cells.get((name, row)) or "–" for name in across)
        lines.append(f"| {titles[row]} | " + " | ".join(found) + " |")
    return lines


def _cell(effect: Effect) -> str:
    """Differences with their sign, which is what they are read for."""
    if effect.mean is None:
        return "–"
    sign = "+" if " − " in effect.comparison or "Spearman" in effect.comparison or effect.mean < 0 else ""
    if effect.low is None or effect.high is None:
        return f"{effect.mean:{sign}.2f}"
    return f"{effect.mean:{sign}.2f} ({effect.low:{sign}.2f} to {effect.high:{sign}.2f})"
