"""Where a number came from: versions, machine, date. And JSON written whole."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "numpy", "sentencepiece", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python, Cria and the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in ("cria", *PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@cache
def machine() -> dict[str, object]:
    """System, processor and cores; no names of machines or people."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def now() -> str:
    """The date and time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, whole.

    Raises ValueError for what JSON cannot hold (a tensor, say).
    """
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path.name} can only hold numbers, text, lists and dicts: {error}."
        ) from None
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole: under another name first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, "utf-8")
    os.replace(unfinished, path)


def _processor() -> str:
    """The processor's name as the system gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
        if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            return found[1].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return platform.processor() or "unknown"
