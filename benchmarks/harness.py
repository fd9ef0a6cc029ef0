"""Timing in pairs, and results as JSON with a Markdown table beside it."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median wall time after one warm-up."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def interleaved(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median wall times of several functions measured in turn, so that drift of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> Row:
    return {
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_results(name: str, sections: dict[str, list[Row]], folder: Path) -> None:
    """Merge sections into NAME.json and write NAME.md from it; sections of earlier runs are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    known = json.loads(file.read_text(encoding="utf-8"))["sections"] if file.exists() else {}
    known |= {title: {"machine": machine(), "rows": rows} for title, rows in sections.items()}
    file.write_text(json.dumps({"sections": known}, indent=1) + "\n", encoding="utf-8")
    parts = [f"# Benchmark: {name}\n\nWritten by `python benchmarks/{name}.py` from `{name}.json`.\n"]
    for title, section in known.items():
        parts.append(f"## {title}\n\n{table(section['rows'])}\n\nMachine: {describe(section['machine'])}.\n")
    (folder / f"{name}.md").write_text("\n".join(parts), encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe(facts: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())
