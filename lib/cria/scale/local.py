"""torchrun on this machine, from a notebook or a test.

    code, lines = run(2, ["base", "--profile", "smoke", "--out", "build/two"])

is `torchrun --nproc-per-node 2 -m cria.scale.launch base …`, kept to this machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil  # comes with ipykernel

from cria.scale import keeping

__all__ = ["command", "run", "start", "stop", "wait_for_step", "workers"]

LIBRARY = Path(__file__).resolve().parents[2]
GRACE = 20.0  # seconds between asking to stop and killing


def command(processes: int, arguments: Sequence[str]) -> list[str]:
    """The line that starts `cria.scale.launch` on so many processes, as words."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        # torchrun finds a free port; the address keeps it to this machine.
        "--standalone",
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={processes}",
        "-m",
        "cria.scale.launch",
        *map(str, arguments),
    ]


def start(processes: int, arguments: Sequence[str]) -> subprocess.Popen:
    """Start it; what it prints comes through ``stdout``, line by line."""
    paths = [str(LIBRARY), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        command(processes, arguments),
        env={
            # Gloo would ask for this machine's name, which may not be known to itself.
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            **os.environ,
            "OMP_NUM_THREADS": "1",  # the processes share the cores already
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that all of it can be ended together
    )


def run(
    processes: int,
    arguments: Sequence[str],
    say: Callable[[str], None] = print,
    limit: float = 600.0,
) -> tuple[int, list[str]]:
    """Run to the end: the exit code and the lines that were printed.

    limit: seconds after which all processes are stopped.
    """
    running, lines = start(processes, arguments), []
    clock = threading.Timer(limit, stop, (running,))
    clock.start()
    try:
        for line in running.stdout:
            lines.append(line.rstrip())
            say(lines[-1])
        return running.wait(), lines
    finally:
        clock.cancel()
        stop(running)


def workers(running: subprocess.Popen) -> list[int]:
    """The process ids of a run's processes, in the order in which they began."""
    return sorted(child.pid for child in psutil.Process(running.pid).children())


def wait_for_step(
    running: subprocess.Popen, out: Path, step: int, limit: float = 600.0
) -> int:
    """Wait until ``out`` has a checkpoint of that step or a later one; its step.

    Raises RuntimeError if the run ends before, TimeoutError after ``limit`` seconds.
    """
    until = time.monotonic() + limit
    while (last := keeping.newest(out)) is None or keeping.step_of(last) < step:
        if running.poll() is not None:
            raise RuntimeError(f"The run ended before: {running.stdout.read()}")
        if time.monotonic() > until:
            raise TimeoutError(f"No checkpoint of step {step} after {limit:.0f} s.")
        time.sleep(0.005)
    return keeping.step_of(last)


def stop(running: subprocess.Popen) -> None:
    """Ask torchrun to end, and end what does not listen."""
    if running.poll() is None:
        running.terminate()
        try:
            running.wait(GRACE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
