"""See what a running notebook prints, while papermill runs it."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cria.names import duration


@dataclass(frozen=True)
class Progress:
    """Where a running notebook is: its cell, of how many, and its last line."""

    cell: int
    cells: int
    line: str


@contextmanager
def watching(watch: Callable[[Progress], None] | None, cells: int) -> Iterator[None]:
    """Tell `watch` of every cell that begins and every line that a cell prints.

    papermill tells these things to its logger only, so we listen there.
    """
    logger = logging.getLogger("papermill")
    before = logger.level, logger.propagate
    listener = _Listener(watch, cells)
    logger.addHandler(listener)
    logger.setLevel(logging.INFO if watch else logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.level, logger.propagate = before


class Ticker:
    """One line that says what goes on: rewritten in a terminal, else now and then."""

    def __init__(self, label: str, stream=None, every: float = 20.0) -> None:
        self._label, self._stream = label, stream or sys.stdout
        self._every, self._start = every, time.monotonic()
        self._last, self._live = self._start, self._stream.isatty()

    def __call__(self, progress: Progress) -> None:
        """Show where the notebook is."""
        gone = duration(time.monotonic() - self._start)
        self.say(f"cell {progress.cell}/{progress.cells}, {gone}  {progress.line}")

    def say(self, line: str) -> None:
        """Show the line, or leave it out if the last one was not long ago."""
        now = time.monotonic()
        if not self._live and now - self._last < self._every:
            return
        self._last = now
        line = f"{self._label} {line}"
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\x1b[K" + line[:width])
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def stay(self, line: str) -> None:
        """Replace the running line by one that stays."""
        self._stream.write(("\r\x1b[K" if self._live else "") + line + "\n")
        self._stream.flush()
        self._last = time.monotonic()

    close = stay


class _Listener(logging.Handler):
    def __init__(self, watch: Callable[[Progress], None] | None, cells: int) -> None:
        super().__init__()
        self._watch, self._cells, self._cell = watch, cells, 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._watch is None:
            return
        text = record.getMessage()
        line = ""
        if begins := re.match(r"Executing Cell (\d+)-", text):
            self._cell = int(begins[1])
        elif re.match(r"Ending Cell \d+-", text):
            return
        else:
            # A progress bar rewrites its line: only its newest state is of interest.
            lines = [part.strip() for part in re.split(r"[\r\n]", text) if part.strip()]
            line = lines[-1] if lines else ""
        if self._cell:
            self._watch(Progress(self._cell, self._cells, line))
