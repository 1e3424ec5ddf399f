"""Which of many scored samples to learn from: pure functions (paper §3.2.3).

A strategy takes samples and gives one a prompt. Each has a control that picks at
random from the very same samples, so that what is gained is gained by the choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

from cria.provenance import write_json
from cria.world.prompts import Prompt

__all__ = ["Sample", "balanced", "best", "by_prompt", "ended", "of_round"]
__all__ += ["randomly", "read_pool", "rescored", "write_pool"]


@dataclass(frozen=True)
class Sample:
    """One answer that a model gave in a round, as ids (EOS included if it ended)."""

    prompt: Prompt
    ids: tuple[int, ...]
    round: int
    score: float  # R_c, by the reward models that scored it last


def by_prompt(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples by the id of their prompt, in the order in which they came."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt.id, []).append(sample)
    return groups


def ended(samples: Iterable[Sample], eos_id: int) -> list[Sample]:
    """Of every prompt the samples that ended by themselves; all, where none did.

    A reward model may like an answer best that was cut off. Who learns from it learns
    not to stop, and the next answers are cut off as well.
    """
    found = []
    for group in by_prompt(samples).values():
        found += [s for s in group if s.ids[-1:] == (eos_id,)] or group
    return found


def best(samples: Iterable[Sample]) -> list[Sample]:
    """The sample with the highest score of every prompt; of equals the earliest."""
    return [max(group, key=lambda s: s.score) for group in by_prompt(samples).values()]


def randomly(samples: Iterable[Sample], seed: int) -> list[Sample]:
    """The control: any sample of every prompt, each as likely."""
    rng = Random(f"random of K {seed}")
    return [rng.choice(group) for group in by_prompt(samples).values()]


def balanced(samples: Sequence[Sample], kinds: Mapping[str, float]) -> list[Sample]:
    """The samples, with those of rare kinds repeated up to their share in ``kinds``.

    A pool of different prompts grows with every round where there are many prompts,
    and cannot grow where there are few: what they teach would be diluted.
    """
    found = list(samples)
    for kind, share in kinds.items():
        several = [s for s in samples if s.prompt.kind == kind]
        missing = round(share * len(samples)) - len(several)
        found += [several[i % len(several)] for i in range(missing) if several]
    return found


def of_round(samples: Iterable[Sample], round: int) -> list[Sample]:
    """The samples of one round only: what the paper did up to V3, and regretted."""
    return [sample for sample in samples if sample.round == round]


def rescored(
    samples: Sequence[Sample], score: Callable[[Sequence[Sample]], Sequence[float]]
) -> list[Sample]:
    """The pool under the newest reward models: old scores do not compare with new."""
    return [
        replace(sample, score=float(value))
        for sample, value in zip(samples, score(samples), strict=True)
    ]


def write_pool(samples: Iterable[Sample], path: Path) -> None:
    """Samples as JSON, whole or not at all."""
    write_json(path, [asdict(sample) for sample in samples])


def read_pool(path: Path) -> list[Sample]:
    """The samples that `write_pool` wrote."""
    return [
        Sample(
            Prompt.from_dict(row["prompt"]),
            tuple(row["ids"]),
            row["round"],
            row["score"],
        )
        for row in json.loads(path.read_text("utf-8"))
    ]
