"""Describes the machine and commit of a measurement; printed and stored with every result."""

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

import embfast

_FLAGS = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_bf16", "avx512_vnni", "amx_tile")
_ARM_FLAGS = ("asimd", "sve", "sve2", "bf16", "i8mm")


def machine_and_commit() -> dict[str, Any]:
    """CPU, versions and the commit of this checkout, with a "+" appended if there are uncommitted changes."""
    cpu = _cpu()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": [flag for flag in (*_FLAGS, *_ARM_FLAGS) if flag in flags],
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "embfast": embfast.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def report(result: dict[str, Any], path: Path | None) -> None:
    """Prints a result as one line of JSON and, if a path is given, writes it to a file."""
    print("\n" + json.dumps(result))
    if path:
        write_json(path, result)


def write_json(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def _cpu() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.split("\n"))}


def _commit() -> str:
    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
