"""Change one thing about rejection sampling and see what it does (paper §3.2.3).

A question is a stage: its arms run side by side, one core each (`cria.rejection_arms`),
and what the judge saw is kept. Where arms start from the SFT model they share the same
scored samples, the stage `rs_samples`, so that only what is done with them differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from cria import rejection_arms, side_by_side
from cria.rejection_arms import (
    Look,
    accuracies,
    branch,
    looked_at,
    ranking,
    texts_beside,
    tuned,
)
from cria.rejection_samples import SAMPLES, judges, sampled
from cria.selection import (
    Sample,
    balanced,
    best,
    ended,
    of_round,
    randomly,
    read_pool,
)
from cria.smaller import quicker, shape

__all__ = ["QUESTIONS", "build"]

MODELS = ("SFT", "V1", "V2", "V3", "V4")

Job = dict  # a function, and its arguments by name


def build(config, seed: int, upstream: Mapping, out: Path, question: str) -> dict:
    """A stage that answers one of `QUESTIONS`: {name of the arm: what was seen}."""
    return side_by_side.run(_call, QUESTIONS[question](_Given(config, seed, upstream)))


class _Given:
    """What the arms of a question have in common."""

    def __init__(self, config, seed: int, upstream: Mapping):
        self.config, self.seed, self.upstream = config, seed, upstream

    @cached_property
    def samples(self) -> list[Sample]:
        """The SFT model's answers, of which every arm has the same to choose from."""
        return self.whole(read_pool(self.upstream["rs_samples"].path / SAMPLES))

    def whole(self, samples: list[Sample]) -> list[Sample]:
        """As on the road, only those that ended."""
        return ended(samples, self.upstream["sft_a"].tokenizer().eos_id)

    @property
    def look(self) -> Look:
        c = self.config.rejection_comparisons
        new_tokens = self.config.rejection.max_new_tokens
        return Look(c.gold_per_kind, c.gold_answers, self.seed, new_tokens)

    def model(self, stage: str) -> Path:
        return self.upstream[stage].path / "model"

    def judges(self, round: int) -> rejection_arms.RMs:
        """The reward models at the end of a round; 0: those before the first."""
        return judges(self.upstream, round)

    def tuned(self, lessons, **changes) -> Job:
        """An arm that learns from ``lessons`` as the road does, from the SFT model."""
        return {
            "function": tuned,
            "folder": self.model("sft_a"),
            "lessons": lessons,
            "config": self.config.rejection,
            "look": self.look,
            "seed": self.seed,
        } | changes


def _choice(given: _Given) -> dict[str, Job]:
    """The best of K against any of K: the same prompts, steps and texts read beside."""
    c, found = given.config.rejection, given.samples
    picked = {"best": best(found), "random": randomly(found, given.seed)}
    vocabulary = given.upstream["sft_a"].tokenizer()
    texts = texts_beside(picked["best"], c, vocabulary, given.seed)
    return {
        name: given.tuned(balanced(several, c.kinds), texts=texts)
        for name, several in picked.items()
    }


def _rrhf(given: _Given) -> dict[str, Job]:
    """RRHF on all of the samples, and plain fine-tuning on the best of them."""
    return {
        "RRHF": {
            "function": ranking,
            "folder": given.model("sft_a"),
            "samples": given.samples,
            "config": given.config.rejection_comparisons.rrhf,
            "look": given.look,
            "seed": given.seed,
            "dtype": given.config.rejection.dtype,
        },
        "best of K": given.tuned(best(given.samples)),
    }


def _pool(given: _Given) -> dict[str, Job]:
    """Rounds 1 to 3 that learn from all rounds' answers or from the last one's.

    In the paper's plain form: neither texts are read beside nor rare kinds repeated,
    which is how our own road keeps its skills; the arm "road's form" does both. In
    "… moved on" nobody asks for the skill `forgotten` any more after round 1.
    """
    c, rejection = given.config.rejection_comparisons, given.config.rejection
    moved_on = {k: share for k, share in rejection.kinds.items() if k != c.forgotten}
    common = {
        "function": branch,
        "folder": given.model("sft_a"),
        "first": best(given.samples),
        "judges": [given.judges(1), given.judges(2)],
        "config": rejection,
        "look": given.look,
        "later": dict(rejection.kinds),
        "prompts": c.prompts,
        "temperature": c.temperature,
        "gate": given.config.ppo.safety_gate,
        "seed": given.seed,
    }
    return {
        "road's form": {**common, "pool": "all", "beside": True},
        "pool": {**common, "pool": "all"},
        "pool, moved on": {**common, "pool": "all", "later": moved_on},
        "previous": {**common, "pool": "previous"},
        "previous, moved on": {**common, "pool": "previous", "later": moved_on},
    }


def _distill(given: _Given) -> dict[str, Job]:
    """A small model taught by the big one's best answers, or by its own best.

    The big one is the road's as it samples in round 4. The same prompts, as many
    answers to each, chosen by the same (big) reward models.
    """
    small = given.model("rs_small")
    big = of_round(read_pool(given.upstream["v4"].path / "pool.json"), 4)
    asked = [s.prompt for s in big]
    own = sampled(given.config, given.seed, given.upstream, small, asked, 3)
    _, faster = shape(given.config, given.config.rejection_comparisons.small_model)
    c = given.config.rejection
    c = replace(c, optim=quicker(c.optim, faster))
    return {
        "before": {"function": looked_at, "folder": small, "look": given.look},
        **{
            name: given.tuned(lessons, folder=small, config=c)
            for name, lessons in (("own", best(given.whole(own))), ("big", big))
        },
    }


def _fresh(given: _Given) -> dict[str, Job]:
    """Answers of every model under reward models of before and after they were made."""
    c, n = given.config.preferences, given.config.rejection_comparisons.fresh_pairs
    safety = int(c.safety_share * n)
    # the first ones, those before the round and after it; on the newest answers all
    wanted = [sorted({0, max(i - 1, 0), i}) for i in range(4)] + [range(5)]
    return {
        name: {
            "function": accuracies,
            "folder": given.model("sft_a" if i == 0 else f"v{i}"),
            "judges": {f"RM {r}": given.judges(r) for r in wanted[i]},
            "n": {"helpfulness": n - safety, "safety": safety},
            "config": c,
            "seed": 700 + given.seed,
        }
        for i, name in reversed(list(enumerate(MODELS)))
    }


def _gold(given: _Given) -> dict[str, Job]:
    """SFT and V1 to V4, on the held-out prompts, sampled and greedy."""
    return {
        name: {
            "function": looked_at,
            "folder": given.model("sft_a" if i == 0 else f"v{i}"),
            "look": given.look,
        }
        for i, name in enumerate(MODELS)
    }


QUESTIONS: dict[str, Callable[[_Given], dict[str, Job]]] = {
    "choice": _choice,
    "rrhf": _rrhf,
    "pool": _pool,
    "distill": _distill,
    "fresh": _fresh,
    "gold": _gold,
}
"""Question → the jobs that answer it."""


def _call(function: Callable, **arguments) -> object:
    """A job of `side_by_side.run` brings its function with it."""
    return function(**arguments)
