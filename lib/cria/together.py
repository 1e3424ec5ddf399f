"""Run notebooks several at a time: one a core, the longest first.

    together.run(paths, folder, {"profile": "course", "seed": 0})

From the cache most of a notebook's time is spent on one core: importing, drawing,
counting. So two at once take about half the time. They share nothing but the cache
and the ledger of findings, which both are locked while they are written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cria import claims, crew, notebook_times, notebooks
from cria.crew import Worker
from cria.notebook_worker import work
from cria.stage_times import Times
from cria.watching import Progress


@dataclass(frozen=True)
class State:
    """How far we are: notebooks done, of how many; where the running ones are.

    left: seconds that it may still take, None if there is nothing to go by.
    ran: the notebook that has just been finished and its seconds, if one has.
    """

    done: int
    total: int
    running: Mapping[str, Progress | None]
    left: float | None
    ran: tuple[Path, float] | None = None


@dataclass(frozen=True)
class Job:
    """A notebook, where its copy goes, and the notebooks that must have run before."""

    path: Path
    out: Path
    needs: frozenset[str]


def run(
    paths: Sequence[Path],
    out: Path,
    parameters: dict,
    *,
    workers: int | None = None,
    watch: Callable[[State], None] = lambda state: None,
) -> None:
    """Run notebooks into the folder `out`; what they need should lie in the cache.

    workers: notebooks at once; default one a core, at most 4. With one they run in
    the given order, in this process; else the longest first, each kernel with one
    thread.
    watch: called about every second and when a notebook has run.

    The first that fails stops the others and is raised (as `notebooks.run` raises);
    Ctrl-C stops all. The copies of those that were stopped are not written.
    """
    workers = min(workers or min(crew.cores(), crew.MOST), len(paths))
    plan = _Plan([Job(p, out / p.name, _before(p, paths)) for p in paths], parameters)
    if workers < 2:
        _alone(plan, parameters, watch)
        return
    hands = [Worker(work, (parameters,)) for _ in range(workers)]
    try:
        while plan.waiting or any(w.name for w in hands):
            for worker in hands:
                if worker.name is None and (job := plan.next()):
                    worker.start(job.path.stem, (job.path, job.out))
            watch(plan.state(hands))
            for worker in crew.heard(hands):
                _listen(worker, plan, hands, watch)
    except BaseException:
        crew.stop(hands)
        raise
    finally:
        crew.dismiss(hands)


def _alone(plan: _Plan, parameters: dict, watch: Callable) -> None:
    for name, job in plan.jobs.items():
        del plan.waiting[name]
        begun = time.monotonic()

        def told(at: Progress | None, name=name, begun=begun) -> None:
            watch(plan.of({name: at}, {name: time.monotonic() - begun}, 1))

        told(None)
        seconds = notebooks.run(job.path, job.out, parameters, told)
        plan.finished(name, seconds)
        watch(plan.of({}, {}, 1, (job.path, seconds)))


def _listen(worker: Worker, plan: _Plan, hands: list[Worker], watch: Callable) -> None:
    """One message of a worker."""
    name = worker.name
    try:
        kind, *details = worker.pipe.recv()
    except (EOFError, OSError):  # killed, most likely for want of memory
        said = f"{name} stopped: its process ended without a word (out of memory?)."
        raise notebooks.NotebookError(said) from None
    if kind == "said":
        # what is not a Progress is a library's own talk, not the notebook's
        worker.line = details[0] if isinstance(details[0], Progress) else worker.line
        return
    worker.name = None
    if kind == "ran":
        plan.finished(name, *details)
        watch(plan.state(hands, (plan.jobs[name].path, *details)))
    elif kind == "stopped":
        raise KeyboardInterrupt
    else:
        raise details[0]


def _before(path: Path, paths: Sequence[Path]) -> frozenset[str]:
    """What must have run first: for a scoreboard, all that record findings."""
    if not any("findings.show(None" in c.source for c in notebooks.read(path).cells):
        return frozenset()
    recording = {claim.notebook for claim in claims.read().values()}
    return frozenset({p.stem for p in paths} & recording - {path.stem})


class _Plan:
    """What is still to be run, and what should come first."""

    def __init__(self, jobs: list[Job], parameters: dict) -> None:
        self.jobs = {job.path.stem: job for job in jobs}
        self.waiting = {name: set(job.needs) for name, job in self.jobs.items()}
        profile = str(parameters.get("profile"))
        known = notebook_times.read([job.path for job in jobs])
        # those that others wait for come before those that wait
        order = sorted(self.jobs, key=lambda name: len(self.jobs[name].needs))
        self.times = Times(order, self.jobs, profile, known)

    def next(self) -> Job | None:
        """Of the notebooks that need not wait, the one with the longest way after."""
        ready = [name for name, needs in self.waiting.items() if not needs]
        if not ready:
            return None
        name = max(ready, key=self.times.way)
        del self.waiting[name]
        return self.jobs[name]

    def finished(self, name: str, seconds: float) -> None:
        self.times.finished(name, seconds)
        for needs in self.waiting.values():
            needs.discard(name)

    def state(self, hands: list[Worker], ran=None) -> State:
        busy = [w for w in hands if w.name]
        running = {w.name: w.line or None for w in busy}
        return self.of(running, {w.name: w.seconds for w in busy}, len(hands), ran)

    def of(self, running: dict, seconds: dict, workers: int, ran=None) -> State:
        done = len(self.jobs) - len(self.waiting) - len(running)
        left = self.times.left(self.waiting, seconds, workers)
        return State(done, len(self.jobs), running, left, ran)
