"""Makes the front page's table of hardware from the files that `sstool selftest --out` writes.

Run `python -m tests.measurements.hardware` after a new file lies in `tests/measurements/selftest`, and put
its output into README.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

FILES: Final = Path(__file__).with_name("selftest")
HEADER: Final = ("| target | machine | proven | failed | not tested there |", "|---|---|---|---|---|")


def table() -> list[str]:
    """Returns the lines of the table: one for each machine and target."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FILES.glob("*.json"))]
    rows = [_row(report, target) for target in _targets(reports) for report in reports]
    return [*HEADER, *(row for row in rows if row is not None)]


def _targets(reports: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["target"] for report in reports for row in report["rows"]))


def _row(report: dict[str, Any], target: str) -> str | None:
    rows = [row for row in report["rows"] if row["target"] == target]
    if not rows:
        return None
    facts = report["environment"]
    on_cpu = target == "ort-cpu" or any("on the processor" in row["check"] for row in rows)
    machine = facts["cpu"] if on_cpu else facts["gpu"].partition(",")[0]
    where = f"{machine}, {facts['logical_cpus']} CPUs" if target == "ort-cpu" else f"graphs on {machine}" if on_cpu else machine
    counts = {state: sum(row["state"] == state for row in rows) for state in ("proven", "failed", "not here")}
    absent = f"{counts['not here']}: kernels, speed" if counts["not here"] else "-"
    return f"| `{target}` | {where} | {counts['proven']} | {counts['failed']} | {absent} |"


if __name__ == "__main__":
    print("\n".join(table()))
