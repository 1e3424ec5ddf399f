"""How long stages take, so that we can say how long the rest will.

data/stage_seconds.json holds what each stage of the course profile takes where the
notebooks are executed; `cria execute` renews it. Another machine or profile
is slower or faster: the stages that it has finished say by how much.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from cria import config as configs
from cria import stage_cache, stages
from cria.fingerprint import plain
from cria.provenance import write_json
from cria.stage_build import part_of
from cria.stage_kind import Stage
from cria.stage_table import STAGES

KNOWN_FOR = "course"
TRUST = 60.0  # seconds of work that the table's own pace weighs


def path() -> Path:
    """Where the seconds are kept."""
    return stages.ROOT / "data" / "stage_seconds.json"


def read() -> dict[str, float]:
    """Seconds by stage; {} if there is no file, or one that cannot be read."""
    try:
        known = json.loads(path().read_text("utf-8"))
        return {str(name): float(seconds) for name, seconds in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # it only guesses times: never a reason to stop


def renew() -> int:
    """Write down what the fastest build of each stage took; how many are known.

    The fastest with the settings of today: the others shared the machine.
    """
    config, found = configs.load(KNOWN_FOR), {}
    for file in stages.cache_root().glob(f"*-*/{stage_cache.SEAL}"):
        made = json.loads(file.read_text("utf-8"))
        name = made["stage"]
        # of a build that was interrupted, we know the last part only
        if name not in STAGES or made["resumed"] or made["profile"] != KNOWN_FOR:
            continue
        today = {part: plain(part_of(config, part)) for part in STAGES[name].sections}
        if made["config"] == today:
            found.setdefault(name, []).append(made["seconds"])
    known = read() | {name: min(seconds) for name, seconds in found.items()}
    write_json(path(), {name: known[name] for name in STAGES if name in known})
    return len(known)


class Times:
    """What `todo`, in order, may still take, given what the first of it took.

    table: what each waits for, as `needs`.  known: seconds, default those of stages.
    """

    def __init__(
        self,
        todo: list[str],
        table: Mapping[str, Stage],
        profile: str,
        known: Mapping[str, float] | None = None,
    ):
        known = read() if known is None else known
        usual = median(known.values()) if known else 1.0
        self.expected = {name: known.get(name, usual) for name in todo}
        self.known = bool(known)
        self._trust = TRUST if profile == KNOWN_FOR else 0.0
        self._gone = self._foreseen = 0.0
        self._after = {name: 0.0 for name in todo}  # the longest chain behind it
        for name in reversed(todo):
            for need in set(table[name].needs) & set(todo):
                self._after[need] = max(self._after[need], self.way(name))

    def way(self, name: str) -> float:
        """Expected seconds from the beginning of a stage to the end of its chain."""
        return self.expected[name] + self._after[name]

    def finished(self, name: str, seconds: float) -> None:
        """A stage took so long here."""
        if self.expected[name] >= 2:  # less says more of starting up than of speed
            self._gone += seconds
            self._foreseen += self.expected[name]

    @property
    def pace(self) -> float | None:
        """Seconds that pass here for one of the table's; None: no idea yet."""
        foreseen = self._foreseen + self._trust
        return (self._gone + self._trust) / foreseen if foreseen else None

    def left(
        self, waiting: Iterable[str], running: Mapping[str, float], workers: int
    ) -> float | None:
        """Seconds until all is built; running: the stages at work, and since when.

        No less than the longest chain takes, nor than the work does, shared out.
        """
        if not self.known or self.pace is None:
            return None
        rest = {
            name: max(self.expected[name] - gone / self.pace, 0.0)
            for name, gone in running.items()
        }
        waiting = list(waiting)
        work = sum(rest.values()) + sum(self.expected[name] for name in waiting)
        chains = [rest[name] + self._after[name] for name in rest]
        chains += [self.way(name) for name in waiting]
        return self.pace * max([work / workers, *chains], default=0.0)
