"""What a run found: lines with target and verdict, as a table for people and as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Finding", "percentile", "print_table", "progress", "write_json"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One measured figure; ``value`` is None for what never happened while it was watched for (see ``detail``).

    ``target`` is empty where the figure only stands beside others.
    """

    part: str
    what: str
    value: float | None
    unit: str
    target: str = ""
    met: bool | None = None
    detail: str = ""

    @classmethod
    def at_least(cls, part: str, what: str, value: float, unit: str, target: float, stretch: float = 0) -> Finding:
        """A figure that must reach ``target``; the detail says whether it also reaches ``stretch``."""
        detail = f"stretch {stretch:g}: {'met' if value >= stretch else 'not met'}" if stretch else ""
        return cls(part, what, value, unit, f"≥ {target:g}", value >= target, detail)

    @classmethod
    def below(cls, part: str, what: str, value: float, unit: str, target: float, detail: str = "") -> Finding:
        return cls(part, what, value, unit, f"< {target:g}", value < target, detail)

    @property
    def verdict(self) -> str:
        return "" if self.met is None else "met" if self.met else "**not met**"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def progress(text: str) -> None:
    print(f"  {text}", flush=True)


def print_table(findings: Sequence[Finding]) -> None:
    """A Markdown table, so that it can be kept as it is."""
    print("\n| | measured | target | | |\n|---|---|---|---|---|")
    for f in findings:
        measured = f"{_number(f.value)} {f.unit if f.value is not None else ''}".strip()
        print(f"| {f.part}: {f.what} | {measured} | {f.target} | {f.verdict} | {f.detail} |")


def write_json(path: Path, findings: Sequence[Finding]) -> None:
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    path.write_text(json.dumps({**machine, "findings": [asdict(f) for f in findings]}, indent=2) + "\n")


def _number(value: float | None) -> str:
    if value is None:
        return "never"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
