"""Processes of our own that each do one thing at a time, and stop cleanly.

The parent holds a `Worker` for each and hands it what to do; the process runs `serve`.
Between them goes a pipe with tuples: the parent sends what is asked for, the process
sends ("said", …) any number of times, and then its answer.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import FrameType

MOST = 4  # workers: neither stages nor notebooks are a broad field
PATIENCE = 60.0  # seconds for a worker to save what it has, when we must stop
# Ends a process that is not yet in `serve`, and has nothing to save. SIGINT would raise
# in the middle of its imports, where it can be lost.
INTERRUPT = signal.SIGUSR1


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Worker:
    """A process and our end of its pipe; `name` is what it is at, or None.

    work: called in the process with its end of the pipe and the arguments.
    """

    def __init__(self, work: Callable, arguments: tuple = ()) -> None:
        # A forked copy of a process that has used torch can hang: start afresh.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *arguments))
        self.process.start()
        theirs.close()
        self.name: str | None = None
        self.line, self.began = "", 0.0

    @property
    def seconds(self) -> float:
        """How long it has been at it."""
        return time.monotonic() - self.began

    def start(self, name: str, asked: object = None) -> None:
        """Let it do `asked` (default: what the name says)."""
        self.name, self.line, self.began = name, "", time.monotonic()
        self.pipe.send(name if asked is None else asked)


def heard(crew: list[Worker], seconds: float = 1.0) -> list[Worker]:
    """Those at work who have something to say, waited for so long at most."""
    pipes = wait([worker.pipe for worker in crew if worker.name], timeout=seconds)
    return [worker for worker in crew if worker.pipe in pipes]


def dismiss(crew: Iterable[Worker]) -> None:
    """Let them end, which they do at once if they have nothing to do."""
    crew = list(crew)
    for worker in crew:
        worker.pipe.close()
    for worker in crew:
        worker.process.join(5)
        worker.process.kill()


def stop(crew: Iterable[Worker]) -> None:
    """Interrupt those at work, and wait until they have saved what they have."""
    busy = [w for w in crew if w.name and w.process.is_alive()]
    for worker in busy:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(worker.process.pid, INTERRUPT)
    end = time.monotonic() + PATIENCE
    try:
        while busy and (left := end - time.monotonic()) > 0:
            for worker in heard(busy, left):
                try:
                    saying = worker.pipe.recv()[0] == "said"
                except (EOFError, OSError):
                    saying = False
                if not saying:
                    busy.remove(worker)
    except KeyboardInterrupt:  # a second Ctrl-C: at once
        pass
    for worker in busy:
        worker.process.kill()


def serve(pipe: Connection, do: Callable[[object], tuple]) -> None:
    """The life of a worker: answer what comes through the pipe, until it is closed."""
    try:
        os.setpgrp()  # Ctrl-C reaches the parent alone, which then tells us once
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(INTERRUPT, _interrupt)
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        # For this process and those it starts; read when torch is imported.
        os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        sys.stdout = sys.stderr = _Lines(pipe)
        while True:
            asked = pipe.recv()
            try:
                answer = do(asked)
            except KeyboardInterrupt:
                answer = ("stopped",)
            pipe.send(answer)
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Ctrl-C for whoever is at work here; but later, if an import is under way.

    There it could be lost: Python drops what is raised in the callbacks of its import
    locks, and modules catch what is raised while they try out an import.
    """
    at: FrameType | None = frame
    while at is not None:
        if at.f_code.co_filename.startswith("<frozen importlib"):
            again = threading.Timer(0.05, os.kill, (os.getpid(), INTERRUPT))
            again.daemon = True
            return again.start()
        at = at.f_back
    signal.raise_signal(signal.SIGINT)  # a training may have a handler of its own


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
