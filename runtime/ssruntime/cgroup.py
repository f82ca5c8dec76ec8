"""The control groups that bound this process, as containers and services set them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cgroup_folders(controller: str) -> Iterator[tuple[Path, int]]:
    """Gives the folders of the process's groups that one controller's limits may be in: its own and all that enclose it.

    Args:
        controller: `cpu` or `memory`.

    Yields:
        A folder, which may not be there, and the version of control groups whose files it would hold, 1 or 2.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:  # hierarchy:controllers:path, where version 2 names no controllers
        _, controllers, own = line.split(":", 2)
        if not controllers:
            yield from ((folder, 2) for folder in _up_to(Path("/sys/fs/cgroup"), own))
        elif controller in controllers.split(","):
            yield from ((folder, 1) for folder in _up_to(Path(f"/sys/fs/cgroup/{controller}"), own))


def _up_to(root: Path, own: str) -> list[Path]:
    """Returns a group's folder and the ones that enclose it; in a container some may not be there, and the root is its own."""
    folder = root / own.lstrip("/")
    return [folder, *(p for p in folder.parents if p.is_relative_to(root))]
