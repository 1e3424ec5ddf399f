"""Build the stages that notebooks will ask for, several at a time.

    ahead.build(["v4", "ppo_v5"], config, seed)

A small network hardly gains from a second thread, but two stages that do not need
each other gain all of it. What lies in the cache already is left alone; what is
built here, `stages.get` finds there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cria import crew, stage_times, stages
from cria.ahead_worker import work
from cria.crew import Worker
from cria.stage_kind import Stage
from cria.stage_table import STAGES


class StageError(RuntimeError):
    """A stage could not be built. `traceback` is the worker's, as text."""

    def __init__(self, name: str, said: str, traceback: str = "") -> None:
        super().__init__(f"the stage {name} could not be built: {said}")
        self.traceback = traceback


@dataclass(frozen=True)
class State:
    """How far we are: stages built, of how many; those being built; the last line.

    left: seconds that it may still take, None if there is nothing to go by.
    pace: seconds that pass here for one of data/stage_seconds.json.
    built: the stage that has just been finished and its seconds, if one has.
    """

    done: int
    total: int
    running: tuple[str, ...]
    line: str
    left: float | None
    pace: float | None
    built: tuple[str, float] | None = None


def build(
    wanted: Iterable[str],
    config: object = None,
    seed: int = 0,
    cache: str | Path | None = None,
    *,
    table: Mapping[str, Stage] = STAGES,
    workers: int | None = None,
    watch: Callable[[State], None] = lambda state: None,
) -> list[str]:
    """Build those of the ``wanted`` stages, and all they need, that are missing.

    workers: stages built at once; default one a core, at most 4. With one core
    nothing is done: `stages.get` does as well.
    watch: called about every second and whenever a stage says something.

    Returns the names of the stages built. The first failure stops the others, which
    keep what they have, and is raised as StageError; Ctrl-C does so, too.
    Raises ValueError for an unknown stage.
    """
    workers = workers or min(crew.cores(), crew.MOST)
    if workers < 2:
        return []
    todo = stages.missing(wanted, config, seed, cache, table=table)
    if not todo:
        return []
    plan = _Plan(todo, table, getattr(config, "profile", "course"))
    arguments = (config, seed, stages.cache_root(cache), table)
    hands = [Worker(work, arguments) for _ in range(min(workers, len(todo)))]
    try:
        while plan.waiting or any(w.name for w in hands):
            for worker in hands:
                if worker.name is None and (name := plan.next()):
                    worker.start(name)
            watch(plan.state(hands))
            for worker in crew.heard(hands):
                _listen(worker, plan, hands, watch)
    except BaseException:
        crew.stop(hands)
        raise
    finally:
        crew.dismiss(hands)
    return todo


def _listen(worker: Worker, plan: _Plan, hands: list[Worker], watch: Callable) -> None:
    """One message of a worker."""
    name = worker.name
    try:
        kind, *details = worker.pipe.recv()
    except (EOFError, OSError):  # killed, most likely for want of memory
        raise StageError(
            name, "its process ended without a word (out of memory?)."
        ) from None
    if kind == "said":
        worker.line = details[0]
        watch(plan.state(hands, line=worker.line))
        return
    worker.name = None
    if kind == "built":
        plan.finished(name, worker.seconds)
        watch(plan.state(hands, built=(name, worker.seconds)))
    elif kind == "stopped":
        raise KeyboardInterrupt
    else:
        raise StageError(name, *details)


class _Plan:
    """What is still to be built, and what should come first."""

    def __init__(self, todo: list[str], table: Mapping[str, Stage], profile: str):
        self.waiting = {
            name: {need for need in table[name].needs if need in todo} for name in todo
        }
        self.total, self.times = len(todo), stage_times.Times(todo, table, profile)

    def next(self) -> str | None:
        """Of the stages that have all they need, the one with the longest way after."""
        ready = [name for name, needs in self.waiting.items() if not needs]
        if not ready:
            return None
        name = max(ready, key=self.times.way)
        del self.waiting[name]
        return name

    def finished(self, name: str, seconds: float) -> None:
        self.times.finished(name, seconds)
        for needs in self.waiting.values():
            needs.discard(name)

    def state(self, hands: list[Worker], line: str = "", built=None) -> State:
        running = {w.name: w.seconds for w in hands if w.name}
        return State(
            self.total - len(self.waiting) - len(running),
            self.total,
            tuple(running),
            line or next((w.line for w in hands if w.name and w.line), ""),
            self.times.left(self.waiting, running, len(hands)),
            self.times.pace,
            built,
        )
