"""The paper's claims, what was seen of each, and the verdict that follows.

The claims themselves are in data/findings.yaml. A verdict is always computed: from
the recorded seeds where there are any, else from this run.
"""

from __future__ import annotations

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
    """One measure: its value in this run and over the recorded seeds."""

    measure: Measure
    value: float | None
    recorded: Interval | None

    @property
    def holds(self) -> bool | None:
        """Does this run's value keep to the expectation? None: not measured."""
        return (
            None if self.value is None else self.measure.expectation.holds(self.value)
        )


@dataclass(frozen=True)
class Row:
    """One line of the scoreboard."""

    claim: Claim
    seen: tuple[Seen, ...]
    run: Run | None
    recorded_profile: str | None

    @property
    def seeds(self) -> int:
        """Recorded seeds behind the verdict: those of the least recorded measure."""
        return min(s.recorded.n if s.recorded else 0 for s in self.seen)

    @property
    def verdict(self) -> str:
        """Computed: shown, not shown or not measured, and on what grounds."""
        if self.seeds:
            holds = all(
                s.measure.expectation.holds_for(s.recorded.low, s.recorded.high)
                for s in self.seen
            )
            grounds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        elif self.run is None or any(s.value is None for s in self.seen):
            return "not measured"
        elif self.run.profile == SMOKE:
            return "not measured (smoke: numbers mean nothing)"
        else:
            holds, grounds = all(s.holds for s in self.seen), "this run"
        return f"{'shown' if holds else 'not shown'} ({grounds})"

    @property
    def missed(self) -> bool:
        """Was it measured, and did not show?"""
        return self.verdict.startswith("not shown")


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
