"""Change one thing about a reward model and see what it does (paper §3.2.2, A.3.3).

A question is a stage: its arms run side by side, one core each (`cria.reward_arms`),
and their numbers are kept. The control of most questions is the helpfulness RM's own
recipe on fewer pairs, a stage of its own; an arm differs from it in one thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from random import Random
from types import SimpleNamespace

from cria import reward_training, side_by_side, smaller
from cria.config import RewardConfig
from cria.preferences import Comparison
from cria.reward_arms import arm, epochs, grown
from cria.reward_data import comparisons, mixes

__all__ = ["ALL", "QUESTIONS", "build", "build_plain"]

ALL = "1"  # the name of the arm with all of the pairs, among those with a share

Job = dict  # a function, and its arguments by name


def build(config, seed: int, upstream: Mapping, out: Path, question: str) -> dict:
    """A stage that answers one of `QUESTIONS`: {name of the arm: its numbers}."""
    given = _Given(config, seed, upstream)
    return side_by_side.run(_call, QUESTIONS[question](given)) | given.borrowed


def build_plain(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `rm_plain`: the helpfulness RM in the paper's form, from the same data."""
    plain = SimpleNamespace(reward=replace(config.reward, own_logprob=()))
    return reward_training.build(plain, seed, upstream, out, "helpfulness")


class _Given:
    """What the arms of a question have in common, and how one of them is written."""

    def __init__(self, config, seed: int, upstream: Mapping):
        self.config, self.seed, self.upstream = config, seed, upstream
        self.n = config.comparisons.reward_pairs
        self.borrowed: dict = {}  # arms that another stage has run

    @cached_property
    def data(self) -> dict[str, dict[str, list[Comparison]]]:
        return comparisons(self.upstream["preferences"].path)

    @cached_property
    def open(self) -> list[Comparison]:
        """The open-source comparisons of both grounds, shuffled."""
        several = [x for part in self.data["open"].values() for x in part]
        Random(f"open comparisons {self.seed}").shuffle(several)
        return several

    @property
    def helpful(self) -> list[Comparison]:
        """The mix of the helpfulness RM, in its order."""
        return self.mixes(self.config.reward)["helpfulness"]

    def safe(self, share: float) -> list[Comparison]:
        """The mix of the safety RM with ``share`` of helpfulness pairs."""
        changed = replace(self.config.reward, safety_helpfulness_share=share)
        return self.mixes(changed)["safety"]

    def mixes(self, c: RewardConfig) -> dict[str, list[Comparison]]:
        """The mixes of the two stages."""
        return mixes(self.data, c, self.seed)

    def folder(self, stage: str) -> Path:
        return self.upstream[stage].file("model.safetensors").parent

    def borrow(self, name: str) -> None:
        """The control, run once for all questions, is the arm ``name`` of this one."""
        self.borrowed[name] = self.upstream["rm_control"].metrics["control"]

    def job(
        self,
        *lessons: Sequence[Comparison],
        ground: str = "helpfulness",
        on: tuple[str, ...] = ("helpfulness",),
        **changes,
    ) -> Job:
        """An arm with ``ground``'s form of the reward model, tested ``on`` grounds."""
        return {
            "function": arm,
            "trunk": self.folder("sft_a"),
            "lessons": lessons,
            "test": {name: self.data["test"][name] for name in on},
            "config": self.config.reward,
            "seed": self.seed,
            "own_logprob": ground in self.config.reward.own_logprob,
            "aux": self.config.reward.safety_aux if ground == "safety" else 0.0,
        } | changes


def _control(given: _Given) -> dict[str, Job]:
    """The recipe of the helpfulness RM, on `reward_pairs` pairs of its mix."""
    return {"control": given.job(given.helpful[: given.n], scores=True)}


def _margins(given: _Given) -> dict[str, Job]:
    """Every row of Table 27 but the recipe's, which the control has."""
    c = given.config.reward
    given.borrow(c.margin)
    return {
        name: given.job(
            given.helpful[: given.n], config=replace(c, margin=name), scores=True
        )
        for name in c.margins
        if name != c.margin
    }


def _joint(given: _Given) -> dict[str, Job]:
    """The same pairs of both mixes: apart, for two models, or together, for one.

    All three have the form of the helpfulness RM and no auxiliary loss, so that only
    the data differ.
    """
    share = given.config.reward.safety_helpfulness_share
    half = given.n // 2
    helpful, safe = given.helpful[:half], given.safe(share)[:half]
    both = list(dict.fromkeys([*helpful, *safe]))
    parts = {"joint": both, "helpfulness": helpful, "safety": safe}
    on = ("helpfulness", "safety")
    return {name: given.job(part, on=on) for name, part in parts.items()}


def _growth(given: _Given) -> dict[str, Job]:
    """Less and more data, for smaller networks and for the course's (Fig. 6).

    All in the paper's plain form: ours is handed what size and data would have to
    bring. What the course's network makes of all pairs is the stage `rm_plain`, and
    the chat model of one of the sizes the stage `rs_small`.
    """
    config, c, pairs = given.config, given.config.comparisons, given.helpful
    ready = config.rejection_comparisons.small_model
    learnt = {
        f"{share:g}": pairs[: max(1, round(share * len(pairs)))]
        for share in c.reward_shares
    }
    jobs: dict[str, Job] = {}
    for name in reversed(c.reward_models):  # the longest first
        model_config, faster = smaller.shape(config, name)
        jobs[name] = {
            "function": grown,
            "model_config": model_config,
            "faster": faster,
            "config": SimpleNamespace(
                pretrain=config.pretrain, sft=config.sft, reward=config.reward
            ),
            "vocabulary": given.folder("sft_a") / "tokenizer.model",
            "learnt": learnt | {ALL: pairs},
            "test": {"helpfulness": given.data["test"]["helpfulness"]},
            "seed": given.seed,
            "chat": given.folder("rs_small") if name == ready else None,
        }
    return jobs | {
        name: given.job(part, own_logprob=False) for name, part in learnt.items()
    }


def _starts(given: _Given) -> dict[str, Job]:
    """New weights, the base model, and (the control) the chat model as the trunk."""
    given.borrow("chat")
    pairs = given.helpful[: given.n]
    return {
        "scratch": given.job(pairs, from_scratch=True),
        "base": given.job(pairs, trunk=given.folder("base")),
    }


def _epochs(given: _Given) -> dict[str, Job]:
    """The same few pairs again and again, in the recipe's form and in the paper's."""
    c = given.config.comparisons
    common = {
        "function": epochs,
        "trunk": given.folder("sft_a"),
        "learnt": given.helpful[: c.reward_epoch_pairs],
        "test": given.data["test"]["helpfulness"],
        "config": given.config.reward,
        "n": c.reward_epochs,
        "seed": given.seed,
    }
    return {
        "own": {**common, "own_logprob": True},
        "plain": {**common, "own_logprob": False},
    }


def _mixes(given: _Given) -> dict[str, Job]:
    """What the mixes of the two reward models do, and the safety RM's auxiliary loss.

    "without open" is the control without its open-source pairs; "open, then mix" reads
    only open-source pairs first.
    """
    c, n = given.config.reward, given.n
    mixed = given.helpful[:n]
    opened = given.open[: n // 2]
    given.borrow("mix")
    safe = given.safe(c.safety_helpfulness_share)[:n]
    safety = {"ground": "safety", "on": ("safety",)}
    return {
        "own": given.job(given.data["train"]["helpfulness"][:n]),
        "open, then mix": given.job(opened, mixed),
        "without open": given.job([x for x in mixed if x.source != "open"]),
        "open": given.job(opened),
        "safety": given.job(safe, **safety),
        "safety without helpful": given.job(given.safe(0.0)[:n], **safety),
        "safety without auxiliary": given.job(safe, **safety, aux=0.0),
    }


QUESTIONS: dict[str, Callable[[_Given], dict[str, Job]]] = {
    "control": _control,
    "margins": _margins,
    "joint": _joint,
    "growth": _growth,
    "starts": _starts,
    "epochs": _epochs,
    "mixes": _mixes,
}
"""Question → the jobs that answer it."""


def _call(function: Callable, **arguments) -> object:
    """A job of `side_by_side.run` brings its function with it."""
    return function(**arguments)
