"""One process of `cria.ahead`: builds the stages that it is handed, one by one.

It tells the parent what happens through a pipe, as tuples:
("said", a line), ("built",), ("failed", error, traceback) or ("stopped",).
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from cria import stages
from cria.stage_table import Stage


def work(
    pipe: Connection, config: object, seed: int, cache: Path, table: Mapping[str, Stage]
) -> None:
    """Build every stage whose name comes through the pipe, until it is closed."""
    os.setpgrp()  # Ctrl-C reaches the parent alone, which then tells us once
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # For this process and those it starts; read when a stage imports torch.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    sys.stdout = sys.stderr = _Lines(pipe)
    try:
        while True:
            pipe.send(_build(pipe.recv(), config, seed, cache, table))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return


def _build(name, config, seed, cache, table) -> tuple:
    try:
        stages.get(name, config, seed, cache, table=table)
        return ("built",)
    except KeyboardInterrupt:
        return ("stopped",)
    except Exception as error:
        said = str(error) or type(error).__name__
        if not isinstance(error, ValueError | OSError | RuntimeError):
            said = f"{type(error).__name__}: {said}"
        return ("failed", said, traceback.format_exc())


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would go on for minutes: end it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _Lines:
    """A standard output whose lines go to the parent; of a bar, the newest state."""

    encoding = "utf-8"

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def write(self, text: str) -> int:
        lines = [part.strip() for part in re.split(r"[\r\n]", text) if part.strip()]
        if lines:
            self._pipe.send(("said", lines[-1]))
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False
