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

from cria import checkpoints, rejection_arms, reward, side_by_side, world
from cria.config import ModelConfig
from cria.rejection import sample
from cria.rejection_arms import (
    Look,
    accuracies,
    branch,
    looked_at,
    quicker,
    ranking,
    tuned,
)
from cria.selection import balanced, best, randomly, read_pool, write_pool
from cria.world import corpora
from cria.world.prompts import mixture

__all__ = ["QUESTIONS", "build", "build_samples", "build_small"]

GROUNDS = ("helpfulness", "safety")
SAMPLES = "samples.json"
MODELS = ("SFT", "V1", "V2", "V3", "V4")

Job = dict  # a function, and its arguments by name


def build_samples(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `rs_samples`: K answers of the SFT model to every prompt, scored."""
    chat_model = upstream["sft_a"]
    found = _sampled(config, seed, upstream, chat_model.path / "model", out)
    write_pool(found, out / SAMPLES)
    for part in out.glob("samples-*.json"):
        part.unlink()
    scores = [s.score for s in best(found)]
    return {
        "samples": len(found),
        "score": sum(s.score for s in found) / len(found),
        "score_of_best": sum(scores) / len(scores),
    }


def build_small(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `rs_small`: a small chat model, the one that will be taught."""
    vocabulary = upstream["sft_a"].tokenizer()
    shape, faster = _small(config)
    model = rejection_arms.grown(shape, faster, config, vocabulary, seed=seed)
    checkpoints.save(model, out / "model", vocabulary)
    return {"weights": shape.n_params}


def build(config, seed: int, upstream: Mapping, out: Path, question: str) -> dict:
    """A stage that answers one of `QUESTIONS`: {name of the arm: what was seen}."""
    return side_by_side.run(_call, QUESTIONS[question](_Given(config, seed, upstream)))


class _Given:
    """What the arms of a question have in common."""

    def __init__(self, config, seed: int, upstream: Mapping):
        self.config, self.seed, self.upstream = config, seed, upstream

    @cached_property
    def samples(self) -> list:
        return read_pool(self.upstream["rs_samples"].path / SAMPLES)

    @property
    def look(self) -> Look:
        c = self.config.rejection_comparisons
        new_tokens = self.config.rejection.max_new_tokens
        return Look(c.gold_per_kind, c.gold_samples, self.seed, new_tokens)

    def model(self, stage: str) -> Path:
        return self.upstream[stage].path / "model"

    def judges(self, round: int) -> rejection_arms.RMs:
        """The reward models at the end of a round; 0: those before the first."""
        return _judges(self.upstream, round)

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
    c, village = given.config.rejection, world.load()
    picked = {
        "best": best(given.samples),
        "random": randomly(given.samples, given.seed),
    }
    n_tokens = c.texts * sum(len(s.ids) for s in picked["best"])
    vocabulary = given.upstream["sft_a"].tokenizer()
    texts = (
        corpora.stream(village, dict(c.text_mix), n_tokens, vocabulary, given.seed)
        if n_tokens
        else []
    )
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
    """Rounds 1 to 3 in the paper's plain form: only what a round learns from differs.

    Neither texts are read beside nor rare kinds repeated, which is how our own road
    keeps its skills. "pool, as few" learns from as few answers as "previous".
    """
    c = given.config.rejection_comparisons
    common = {
        "function": branch,
        "folder": given.model("sft_a"),
        "first": best(given.samples),
        "judges": [given.judges(1), given.judges(2)],
        "config": given.config.rejection,
        "look": given.look,
        "prompts": c.prompts,
        "temperature": c.temperature,
        "gate": given.config.ppo.safety_gate,
        "seed": given.seed,
    }
    return {
        "pool": {**common, "pool": "all"},
        "pool, as few": {**common, "pool": "all", "at_most": c.prompts},
        "previous": {**common, "pool": "previous"},
    }


def _distill(given: _Given) -> dict[str, Job]:
    """A small model taught by the big one's best answers, or by its own best.

    The same prompts, as many answers to each, the same (big) reward models.
    """
    small = given.model("rs_small")
    own = _sampled(given.config, given.seed, given.upstream, small)
    _, faster = _small(given.config)
    c = given.config.rejection
    c = replace(c, optim=quicker(c.optim, faster))
    return {
        "before": {"function": looked_at, "folder": small, "look": given.look},
        **{
            name: given.tuned(best(samples), folder=small, config=c)
            for name, samples in (("own", own), ("big", given.samples))
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


def _judges(upstream: Mapping, round: int) -> rejection_arms.RMs:
    if round == 0:
        return tuple(upstream[f"rm_{x}"].path / "model" for x in ("helpful", "safety"))
    return tuple(upstream[f"v{round}"].path / f"rm_{ground}" for ground in GROUNDS)


def _sampled(
    config, seed: int, upstream: Mapping, folder: Path, out: Path | None = None
) -> list:
    """K answers of the model in ``folder``, scored by the first reward models."""
    c = config.rejection_comparisons
    model, vocabulary = checkpoints.load(folder), upstream["sft_a"].tokenizer()
    asked = mixture(
        world.load(),
        "train",
        c.prompts,
        dict(config.rejection.kinds),
        1000 * seed + 500,
        unique=True,
    )
    return sample(
        model,
        tuple(reward.load(path) for path in _judges(upstream, 0)),
        vocabulary,
        asked,
        config.rejection,
        round=1,
        temperature=c.temperature,
        gate=config.ppo.safety_gate,
        seed=100 * (1000 * seed + 500),
        out=out,
    )


def _small(config) -> tuple[ModelConfig, float]:
    """The shape of the small model, and how much faster it learns."""
    small = config.comparisons.reward_models[config.rejection_comparisons.small_model]
    shape = replace(
        config.model,
        dim=small.dim,
        n_layers=small.n_layers,
        n_heads=small.n_heads,
        n_kv_heads=small.n_kv_heads,
    )
    return shape, small.lr / config.pretrain.optim.lr


def _call(function: Callable, **arguments) -> object:
    """A job of `side_by_side.run` brings its function with it."""
    return function(**arguments)
