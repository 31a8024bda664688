"""The findings of `gpu.py` as a Markdown table, and their section of `docs/results.md`.

Findings are a JSON object:

- `machine`: name -> value, such as the device, its driver and the versions.
- `seconds`: time of all sections together.
- `sections`: name -> `rows`, `seconds`, `peak_mib` (memory of the device), and `error`: one line,
  or null. A row has `what`, and some of: `value` with `unit`, `low` and `high`; `text`; `against`,
  what it is compared with, and `ratio`; `at_least` or `at_most`, the target of the ratio, or of
  the value if there is no ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
KEPT = RESULTS.parent / "results" / "gpu.json"  # the findings that the section shows
BEGIN, END = "<!-- begin: benchmarks/gpu.py -->", "<!-- end: benchmarks/gpu.py -->"
COMMAND = "```\npython benchmarks/gpu.py\n```"

Findings = Mapping[str, Any]


def number(value: float) -> str:
    """Write a number with about four digits."""
    size = abs(value)
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def table(findings: Findings) -> str:
    """Write all rows as one Markdown table, then times, memory and failures."""
    lines = ["| | measured | against | ratio | asked |", "|---|---|---|---|---|"]
    for name, section in findings["sections"].items():
        lines.append(f"| **{name}** | | | | |")
        lines += [_line(row) for row in section["rows"]]
        if section["error"]:
            lines.append(f"| *{_cell(section['error'])}* | *failed* | | | |")
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    measured = row.get("text", "")
    if "value" in row:
        measured = f"{number(row['value'])} {row.get('unit', '')}".strip()
    if row.get("low") != row.get("high"):
        measured += f" ({number(row['low'])} to {number(row['high'])})"
    ratio, asked = row.get("ratio"), ""
    held = row.get("value") if ratio is None else ratio
    for name, words in (("at_least", "at least"), ("at_most", "at most")):
        if name in row and held is not None:
            met = held >= row[name] if name == "at_least" else held <= row[name]
            asked = f"{words} {number(row[name])}{'' if met else ', **missed**'}"
    cells = [row["what"], measured, row.get("against", "")]
    cells += ["" if ratio is None else f"{ratio:.2f}", asked]
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def summary(findings: Findings) -> str:
    """Write the machine, the table, and the time and peak memory of each section."""
    machine = ". ".join(f"{name}: {value}" for name, value in findings["machine"].items())
    each = ", ".join(
        f"{name} {section['seconds']:.0f} s and {section['peak_mib']:,.0f} MiB"
        for name, section in findings["sections"].items()
    )
    return (
        f"{machine}.\n\n{table(findings)}\n\nMedians, with the lowest and the highest round. "
        f"Time and peak memory of the device: {each}; {findings['seconds']:.0f} s in all."
    )


def docs_section(findings: Findings | None) -> str:
    """Write what stands between the markers of `docs/results.md`; None: nothing was measured."""
    if findings is None:
        return (
            f"*Unmeasured.* No GPU was at hand. On a machine with one, this takes under nine "
            f"minutes:\n\n{COMMAND}\n\n`--write gpu.json` then fills this section."
        )
    return f"{COMMAND}\n\n{summary(findings)}"


def between_markers(page: str) -> str:
    """Return what stands between the markers of a page."""
    return page.partition(BEGIN)[2].partition(END)[0].strip()


def write_docs(findings: Findings, page: Path = RESULTS) -> None:
    """Replace what stands between the markers of a page."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    text = f"{before}{BEGIN}\n\n{docs_section(findings)}\n\n{END}{after}"
    page.write_text(text, encoding="utf-8")
