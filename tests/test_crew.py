"""Processes of our own, and that an interrupt reaches them wherever they are."""

import sys
import time
from contextlib import suppress

import pytest

from cria import crew

SWALLOWS = """
import time
try:
    print("importing", flush=True)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        time.sleep(0.01)
except BaseException:
    pass
"""


def never_ready(pipe):
    """A process that is still starting, and in which every interrupt is lost."""
    pipe.send(("said", "starting"))
    while True:
        with suppress(KeyboardInterrupt):
            time.sleep(60)


def sleeper(pipe, folder):
    """Imports a module that swallows what is raised in it; then it sleeps."""

    def do(asked):
        if asked == "import":
            sys.path.insert(0, str(folder))
            import swallows  # noqa: F401
        print("asleep")
        time.sleep(60)
        return ("slept",)

    crew.serve(pipe, do)


def hear(worker, line):
    """Wait until the worker says so."""
    end = time.monotonic() + 60
    while time.monotonic() < end and crew.heard([worker]):
        if worker.pipe.recv() == ("said", line):
            return
    raise AssertionError(f"the worker never said {line!r}")


@pytest.mark.parametrize(
    ("work", "asked", "line"),
    [
        (never_ready, "anything", "starting"),
        (sleeper, "import", "importing"),
        (sleeper, "sleep", "asleep"),
    ],
)
def test_an_interrupt_is_never_lost(tmp_path, work, asked, line):
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    worker = crew.Worker(work, () if work is never_ready else (tmp_path,))
    try:
        worker.start("it", asked)
        hear(worker, line)
        began = time.monotonic()
        crew.stop([worker])
        assert time.monotonic() - began < crew.PATIENCE / 3
        worker.process.join(5 if work is never_ready else 0.1)
        killed = not worker.process.is_alive()
        assert killed == (work is never_ready), "who could save was given the time to"
    finally:
        crew.dismiss([worker])


def test_a_worker_that_was_interrupted_says_so_and_goes_on(tmp_path):
    worker = crew.Worker(sleeper, (tmp_path,))
    try:
        worker.start("it", "sleep")
        hear(worker, "asleep")
        crew.stop([worker])
        worker.start("again", "sleep")
        hear(worker, "asleep")
    finally:
        crew.dismiss([worker])
