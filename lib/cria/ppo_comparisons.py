"""Change one thing about PPO and see what it does (paper §3.2.3).

A question is a stage: its arms run side by side, one core each (`cria.ppo_arms`), and
what was seen is kept. All arms are short and start from the SFT model, where there is
most to gain and to spoil, with the reward models of before V1. Nothing is stopped
early in them, and no texts are read beside: what is seen comes from the reward alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cria import ppo_stage, side_by_side
from cria.config import PPOConfig
from cria.ppo_arms import REWARDS, View, arm, viewed

__all__ = ["PLAIN", "QUESTIONS", "build", "build_gold", "view_of"]

PLAIN = "plain"  # the arms with the reward model that is easily fooled
FREE = 1e9  # nats: no budget

Job = dict  # the arguments of `ppo_arms.arm`, by name


def build(config, seed: int, upstream: Mapping, out: Path, question: str) -> dict:
    """A stage that answers one of `QUESTIONS`: {name of the arm: what was seen}."""
    borrowed, jobs = QUESTIONS[question](_Given(config, seed, upstream))
    return borrowed | side_by_side.run(arm, jobs)


def build_gold(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `ppo_gold`: V5, the model it started from, and SFT, as `ppo_arms.viewed`.

    The reward models are those that PPO had; the KL is to where PPO started.
    """
    v5 = upstream["ppo_v5"]
    origin = upstream[v5.metrics["start"]]
    judges = ppo_stage.judges(upstream["v4"])
    models = {"SFT": upstream["sft_a"], "start": origin, "V5": v5}
    return {
        name: viewed(
            stage.model().eval(),
            origin.model().eval(),
            judges,
            v5.tokenizer(),
            config.ppo,
            view_of(config.ppo_comparisons, seed),
        )
        for name, stage in models.items()
    }


def view_of(c, seed: int) -> View:
    """How the section `ppo_comparisons` wants arms to be looked at."""
    return View(c.few_prompts, c.few_answers, c.gold_per_kind, c.gold_answers, seed + 1)


class _Given:
    """What the arms of a question have in common, and how one of them is written."""

    def __init__(self, config, seed: int, upstream: Mapping):
        self.config, self.seed, self.upstream = config, seed, upstream
        self.c = config.ppo_comparisons

    @property
    def ppo(self) -> PPOConfig:
        """The road's PPO in small: fewer answers to prompts of its own, one constant
        rate, never stopped; what counts is the last policy and no mean."""
        c = self.c
        return replace(
            self.config.ppo,
            batch_size=c.batch_size,
            minibatch_size=c.minibatch_size,
            kinds=c.kinds,
            wordings=c.wordings,
            optim=replace(self.config.ppo.optim, lr=c.lr, schedule="constant"),
            gain_lr=c.lr,
            text_coef=0.0,
            average=0.0,
            kl_budget=FREE,
            patience=1 + c.iterations,
            dev_prompts=c.dev_prompts,
            dev_every=c.look_every,
        )

    def rm(self, name: str) -> Path:
        return self.upstream[name].path / "model"

    def job(self, **changes) -> Job:
        """An arm that spends all of its answers on PPO."""
        return {
            "folder": self.rm("sft_a"),
            "judges": (self.rm("rm_helpful"), self.rm("rm_safety")),
            "config": self.ppo,
            "rejection": self.config.rejection,
            "view": view_of(self.c, self.seed),
            "seed": self.seed,
            "iterations": self.c.iterations,
        } | changes


Arms = tuple[dict, dict[str, Job]]  # what another stage has found, and what is new


def _order(given: _Given) -> Arms:
    """PPO alone, rejection sampling alone, and one after the other, at as many answers.

    "both" gives half of its answers to each.
    """
    c, K = given.c, given.config.rejection.samples
    whole = c.iterations * c.batch_size // K  # prompts, K answers each
    half = c.iterations // 2
    return {}, {
        "PPO": given.job(),
        "both": given.job(prompts=half * c.batch_size // K, iterations=half),
        "rejection sampling": given.job(prompts=whole, iterations=0),
    }


def _gate(given: _Given) -> Arms:
    """The safety gate against sums of the two rewards, and helpfulness alone."""
    borrowed = {"gate": given.upstream["ppo_order"].metrics["PPO"]}
    return borrowed, {
        name: given.job(rewarded=name) for name in REWARDS if name != "gate"
    }


def _beta(given: _Given) -> Arms:
    """Pushed hard, at a high rate, for several β.

    With the helpfulness RM in the paper's plain form, which a million weights do not
    carry, and once with ours. The looks are all that is wanted.
    """
    c = given.c
    fast = replace(given.ppo.optim, lr=c.hard_lr)
    hard = replace(given.ppo, optim=fast, gain_lr=c.hard_lr)
    plain = (given.rm("rm_plain"), given.rm("rm_safety"))
    jobs = {
        f"{PLAIN} {beta:g}": given.job(
            judges=plain, config=replace(hard, beta=beta), full=False
        )
        for beta in c.betas
    }
    least = min(c.betas)
    ours = given.job(config=replace(hard, beta=least), full=False)
    return {}, jobs | {f"ours {least:g}": ours}


QUESTIONS: dict[str, Callable[[_Given], Arms]] = {
    "order": _order,
    "gate": _gate,
    "beta": _beta,
}
"""Question → the arms that answer it."""
