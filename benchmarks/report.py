"""What both benchmarks share: naming the machine, drawing tables, keeping results."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "RESULTS",
    "describe_machine",
    "folder_bytes",
    "format_seconds",
    "machine_line",
    "table",
    "write_json",
]

RESULTS = Path(__file__).parent / "results"

_PACKAGES = (
    "cas_zarr",
    "zarr",
    "numpy",
    "blake3",
    "numcodecs",
    "obstore",
    "icechunk",
    "py-hamt",
)


def describe_machine(folder: Path) -> dict[str, Any]:
    """Return what a reader needs to judge a figure: processor, cores, system, versions, disk."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "filesystem": _filesystem(folder),
        "packages": versions,
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """Return the machine in one line, for the head of a table."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['filesystem']}, Python {machine['python']}; {packages}; "
        f"load {machine['load_average_at_start']} at the start"
    )


def folder_bytes(folder: Path) -> int:
    """Return the sum of the sizes of all files below `folder`, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def format_seconds(seconds: float) -> str:
    """Return a duration with three digits and its unit."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are also aligned as plain text."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [row[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *["-" * (width - 1) + ":" for width in widths[1:]]]
    return "\n".join([line(cells[0]), "| " + " | ".join(rule) + " |", *map(line, cells[1:])])


def write_json(name: str, document: dict[str, Any]) -> Path:
    """Write a result under `benchmarks/results/` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _filesystem(folder: Path) -> str:
    """Return the type of the file system that holds `folder`, where /proc tells it."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown file system"
    best, kind = "", "unknown file system"
    target = str(folder.resolve())
    for line in mounts.read_text(encoding="utf-8").splitlines():
        _, point, name, *_ = line.split()
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) > len(best):
            best, kind = point, name
    return kind
