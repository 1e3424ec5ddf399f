"""Which stages does a notebook ask for? Seen from outside, while it runs.

    with asked.noting(file):
        …  # run the notebook
    names = asked.read(file)

The kernel is a process of its own, so `stages.get` notes names in a file that the
environment tells it of.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = "CRIA_ASKED_FOR"


def note(name: str) -> None:
    """A stage was asked for by name."""
    if path := os.environ.get(FILE):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{name}\n")


@contextmanager
def noting(path: Path) -> Iterator[None]:
    """Processes that are started in here note in `path` what they ask for."""
    before = os.environ.get(FILE)
    os.environ[FILE] = str(path)
    try:
        yield
    finally:
        os.environ.pop(FILE)
        if before is not None:
            os.environ[FILE] = before


def read(path: Path) -> list[str]:
    """The stages noted in `path`, each once, in order of their names."""
    return sorted(set(path.read_text("utf-8").split())) if path.exists() else []
