"""Runs the self-test, target by target."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ssruntime.errors import SelfSpecError
from sstool.selftest.exactness import check_family
from sstool.selftest.machine import environment, why_not
from sstool.selftest.models import FAMILIES, SHAPES, write_tiny
from sstool.selftest.placement import check_placement
from sstool.selftest.rows import Rows, SelfTestReport
from sstool.selftest.speed import host_bandwidth, measure_speed
from sstool.targets.registry import GRAPH_TARGETS

_SHAPE_OF_GPU: Final = "llama-2-7b"
_SHAPE_OF_CPU: Final = "llama-60m"
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SelfTestOptions:
    """What to test.

    Attributes:
        targets: names of targets; empty for all.
        shape: model whose speed is measured; None for the usual one of each device, `none` for no model.
        progress: called with the name of each step.
    """

    targets: tuple[str, ...] = ()
    shape: str | None = None
    progress: Progress | None = None


def run_selftest(options: SelfTestOptions) -> SelfTestReport:
    """Returns what is proven on this machine, what failed, and what cannot be tested here."""
    begun = time.perf_counter()
    rows = []
    with tempfile.TemporaryDirectory(prefix="sstool-") as name:
        for target in options.targets or tuple(GRAPH_TARGETS):
            rows += _test_target(target, options, Path(name)).found
    return SelfTestReport(environment=environment(), rows=tuple(rows), seconds=round(time.perf_counter() - begun, 1))


def _test_target(name: str, options: SelfTestOptions, folder: Path) -> Rows:
    target, rows, absent = GRAPH_TARGETS[name], Rows(name), why_not(name)
    say = options.progress or (lambda _step: None)
    if name == "ort-cpu" and absent is not None:
        rows.absent("every check", absent)
        return rows
    for family in FAMILIES:
        say(f"{name}: {family}")
        model = folder / "models" / family
        if not model.exists():
            write_tiny(model, family)
        out = folder / name / family
        _guarded(rows, f"{family}: parity", functools.partial(check_family, rows, target, model, out, on_cpu=absent is not None))
    if name != "ort-cpu":
        say(f"{name}: placement")
        _guarded(rows, "placement and capture", lambda: check_placement(rows, name, folder / name / next(iter(FAMILIES)), absent))
    if options.shape == "none":
        return rows
    shape = SHAPES[options.shape or (_SHAPE_OF_CPU if name == "ort-cpu" else _SHAPE_OF_GPU)]
    checks: Sequence[str] = ("plain step", "draft step", "verify pass in plain steps", "host time of speculative decoding")
    if absent is not None:
        for check in checks:
            rows.absent(f"{shape.title}: {check}", absent)
        return rows
    say(f"{name}: {shape.title}")
    bandwidth = host_bandwidth() if name == "ort-cpu" else _gpu_bandwidth()
    with tempfile.TemporaryDirectory(prefix="sstool-") as own:
        _guarded(rows, f"{shape.title}: speed", lambda: measure_speed(rows, target, shape, Path(own), bandwidth=bandwidth))
    return rows


def _gpu_bandwidth() -> float:
    from ssruntime.backends.cuda import CudaDevice

    return CudaDevice().bandwidth()


def _guarded(rows: Rows, check: str, run: Callable[[], None]) -> None:
    """Runs a check; an error becomes a row, and the others go on."""
    try:
        run()
    except SelfSpecError as err:
        rows.fail(check, err.message)
    except Exception as err:  # noqa: BLE001 - a broken driver or library raises anything
        rows.fail(check, " ".join(f"{type(err).__name__}: {err}".split())[:300])
