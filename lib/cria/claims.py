"""The paper's claims, what was seen of each, and the verdict that follows.

The claims themselves are in data/findings.yaml. A verdict is always computed: from
the recorded seeds where there are any, one for each profile that was recorded, else
from this run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from cria import stages
from cria.intervals import Expectation, Interval

SMOKE = "smoke"  # a profile so small that its numbers mean nothing


@dataclass(frozen=True)
class Measure:
    """One effect, with the sign that the claim predicts."""

    name: str
    what: str
    unit: str
    expect: str  # "> x", "< x" or "abs < x"

    @property
    def expectation(self) -> Expectation:
        """`expect`, ready to judge a value or an interval."""
        return Expectation.parse(self.expect)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper (data/findings.yaml says what each field means)."""

    id: int
    says: str
    paper: str
    section: str
    notebook: str
    measures: tuple[Measure, ...]
    tried: str = ""  # where it does not show: what was tried, and why we think so


@dataclass(frozen=True)
class Run:
    """Where "this run" comes from. `changed`: its settings are not the profile's."""

    profile: str
    seed: int
    date: str
    changed: bool


@dataclass(frozen=True)
class Seen:
    """One measure: its value in this run, and over the recorded seeds of a profile."""

    measure: Measure
    value: float | None
    recorded: Mapping[str, Interval]

    @property
    def holds(self) -> bool | None:
        """Does this run's value keep to the expectation? None: not measured."""
        return (
            None if self.value is None else self.measure.expectation.holds(self.value)
        )

    def keeps(self, profile: str) -> bool:
        """Do a profile's recorded seeds keep to the expectation, all the interval?"""
        interval = self.recorded[profile]
        return self.measure.expectation.holds_for(interval.low, interval.high)


@dataclass(frozen=True)
class Row:
    """One line of the scoreboard."""

    claim: Claim
    seen: tuple[Seen, ...]
    run: Run | None

    @property
    def profiles(self) -> tuple[str, ...]:
        """Those with recorded seeds of every measure."""
        first, *others = (s.recorded for s in self.seen)
        return tuple(p for p in first if all(p in other for other in others))

    def seeds(self, profile: str) -> int:
        """Recorded seeds behind a verdict: those of the least recorded measure."""
        return min(s.recorded[profile].n for s in self.seen)

    def shows(self, profile: str) -> bool:
        """Do a profile's recorded seeds show it, by every measure?"""
        return all(s.keeps(profile) for s in self.seen)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Computed: shown, not shown or not measured, and on what grounds."""
        if self.profiles:
            return tuple(
                _verdict(self.shows(p), f"{p}, {in_seeds(self.seeds(p))}")
                for p in self.profiles
            )
        if self.run is None or any(s.value is None for s in self.seen):
            return ("not measured",)
        if self.run.profile == SMOKE:
            return ("not measured (smoke: numbers mean nothing)",)
        return (_verdict(all(s.holds for s in self.seen), "this run"),)

    @property
    def missed(self) -> bool:
        """Was it measured, and did not show, in one profile at least?"""
        return any(verdict.startswith("not shown") for verdict in self.verdicts)


def in_seeds(n: int) -> str:
    """1 seed, 5 seeds."""
    return "1 seed" if n == 1 else f"{n} seeds"


def _verdict(holds: bool, grounds: str) -> str:
    return f"{'shown' if holds else 'not shown'} ({grounds})"


def read(path: Path | None = None) -> dict[int, Claim]:
    """All claims by id, in order. Raises ValueError for a broken file."""
    path = path or stages.ROOT / "data" / "findings.yaml"
    found: dict[int, Claim] = {}
    try:
        for entry in yaml.safe_load(path.read_text("utf-8")):
            measures = tuple(Measure(**m) for m in entry.pop("measures"))
            claim = Claim(**entry, measures=measures)
            if not measures or claim.id in found:
                raise ValueError(f"claim {claim.id} is there twice or has no measures")
            for measure in measures:
                Expectation.parse(measure.expect)
            found[claim.id] = claim
    except (TypeError, KeyError, AttributeError, yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path.name} is broken: {error}") from None
    return found
