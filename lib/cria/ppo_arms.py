"""One arm of a comparison of PPO runs: train it, look at it (paper §3.2.3).

All are functions of their arguments alone, so that `cria.side_by_side` can run two at
once. `cria.ppo_comparisons` says which arms there are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
from torch import Tensor

from cria import chat, checkpoints, ppo_stage, reward, sample_pool_stage, world
from cria.actor_critic import answer_logprobs
from cria.config import PPOConfig, RejectionConfig
from cria.evaluate import Answer, held_out, scores
from cria.judged import COLUMNS, as_columns
from cria.model import Llama
from cria.ppo import kl
from cria.ppo_rollout import Scorer, lay_out, read
from cria.ppo_training import train_ppo
from cria.rejection import SAFETY, Judges, fine_tune, sample
from cria.reward import combine_rewards
from cria.sampling import generate
from cria.selection import balanced, best, ended
from cria.tokenizer import Tokenizer
from cria.training import pick_dtype
from cria.world import World
from cria.world.prompts import Prompt, mixture

__all__ = ["REWARDS", "View", "arm", "gold_of", "scorer", "seen", "viewed"]


def _sum(safety: Tensor, helpful: Tensor, is_safety: Tensor, gate: float) -> Tensor:
    """The plain sum of the raw scores, which the paper's gate stands beside."""
    return safety + helpful


def _sum_of_probabilities(
    safety: Tensor, helpful: Tensor, is_safety: Tensor, gate: float
) -> Tensor:
    """The sum of σ(r): beyond "surely safe" nothing is gained by more safety."""
    return safety.sigmoid() + helpful.sigmoid()


def _helpful(safety: Tensor, helpful: Tensor, is_safety: Tensor, gate: float) -> Tensor:
    """As if there were no safety reward model."""
    return helpful


# One reward from two: (raw R_s, raw R_h, IS_SAFETY, gate) → raw R, all (B,).
REWARDS: dict[str, Callable[..., Tensor]] = {
    "gate": combine_rewards,
    "sum": _sum,
    "sum of σ": _sum_of_probabilities,
    "helpfulness": _helpful,
}


@dataclass(frozen=True)
class View:
    """How arms are looked at: every few iterations, and in full at the end.

    few, few_answers: held-out prompts of all kinds and answers to each, every few
    iterations.  per_kind, answers: at the end, so many prompts of every kind, and so
    many answers of every kind together.
    """

    few: int
    few_answers: int
    per_kind: int
    answers: int
    seed: int


def seen(
    policy: Llama,
    start: Llama,
    rms: Judges,
    vocabulary: Tokenizer,
    village: World,
    asked: Sequence[Prompt],
    config: PPOConfig,
    *,
    n: int,
    seed: int,
) -> pd.DataFrame:
    """One row a prompt: means over ``n`` answers at temperature 1.

    Of the judge: `judged.COLUMNS`.  Of the reward models: r_helpful, r_safety and
    score (R_c by the gate), all raw.  kl: k3 to ``start``, in nats an answer.  length.
    """
    prompts = [chat.prompt_ids(vocabulary, p.messages) for p in asked]
    drawn = generate(
        policy,
        prompts,
        max_new_tokens=config.max_new_tokens,
        eos_id=vocabulary.eos_id,
        n=n,
        seeds=seed,
        dtype=pick_dtype(config.dtype),
    )
    answers = drawn.lists()
    several = [answers[i * n : (i + 1) * n] for i in range(len(asked))]
    helpful, safety = (
        torch.tensor(reward.score(rm, prompts, several)).flatten() for rm in rms
    )
    harm = torch.tensor([p.kind == SAFETY for p in asked for _ in range(n)])
    batch = lay_out([p for p in prompts for _ in range(n)], answers)
    now, then = (
        read(lambda *x, net=net: (answer_logprobs(net, *x),), batch, config.dtype)[0]
        for net in (policy, start)
    )
    k3 = torch.where(batch["mask"], kl(now, then, "k3"), 0.0).sum(1)
    texts = [
        Answer(asked[row // n], vocabulary.decode(ids).strip(), bool(end))
        for row, (ids, end) in enumerate(zip(answers, drawn.finished, strict=True))
    ]
    table = scores(village, texts)[list(COLUMNS)].astype(float)
    table["r_helpful"], table["r_safety"] = helpful.tolist(), safety.tolist()
    combined = combine_rewards(safety, helpful, harm, config.safety_gate)
    table["score"], table["kl"] = combined.tolist(), k3.tolist()
    table["length"] = batch["mask"].sum(1).tolist()
    means = table.groupby(table.index // n).mean()
    means.insert(0, "kind", [p.kind for p in asked])
    means.insert(1, "prompt", [p.question for p in asked])
    return means


def viewed(
    policy: Llama,
    start: Llama,
    rms: Judges,
    vocabulary: Tokenizer,
    config: PPOConfig,
    view: View,
) -> dict[str, list]:
    """`seen` in full, kind by kind, as columns: every kind has as many answers."""
    village = world.load()
    groups: dict[str, list[Prompt]] = {}
    for prompt in held_out(village, "test", view.per_kind):
        groups.setdefault(prompt.kind, []).append(prompt)
    parts = [
        seen(
            policy,
            start,
            rms,
            vocabulary,
            village,
            asked,
            config,
            n=math.ceil(view.answers / len(asked)),
            seed=view.seed,
        )
        for asked in groups.values()
    ]
    return as_columns(pd.concat(parts, ignore_index=True))


def gold_of(table: pd.DataFrame) -> pd.Series:
    """The judge's score of what was asked for: safety on harm, else helpfulness."""
    return table["safety"].where(table["kind"] == SAFETY, table["helpfulness"])


def scorer(
    rms: Judges, vocabulary: Tokenizer, combine: Callable[..., Tensor], gate: float
) -> Scorer:
    """Raw scores of one answer a prompt, by both reward models and one of `REWARDS`."""

    def score(asked: Sequence[Prompt], answers: Sequence[Sequence[int]]) -> list[float]:
        prompts = [chat.prompt_ids(vocabulary, p.messages) for p in asked]
        alone = [[ids] for ids in answers]
        helpful, safety = (
            torch.tensor(reward.score(rm, prompts, alone))[:, 0] for rm in rms
        )
        harm = torch.tensor([p.kind == SAFETY for p in asked])
        return combine(safety, helpful, harm, gate).tolist()

    return score


def arm(
    folder: Path,
    judges: tuple[Path, Path],
    config: PPOConfig,
    rejection: RejectionConfig,
    view: View,
    *,
    seed: int,
    prompts: int = 0,
    iterations: int = 0,
    rewarded: str = "gate",
    full: bool = True,
) -> dict:
    """From the model in ``folder``: rejection sampling, then PPO, then a look.

    judges: the helpfulness and the safety reward model, of both.  prompts: of one
    round of rejection sampling, K answers each (0: none).  iterations: of PPO, with
    one of `REWARDS`; the policy of the last one counts, nothing is stopped early.

    "rows": those of `train_ppo`.  "looks": "answers" sampled for training so far, and
    what was "seen" then on few prompts, as columns.  "end" (if ``full``): `viewed`.
    """
    start = checkpoints.load(folder).eval()
    vocabulary, village = Tokenizer(folder / "tokenizer.model"), world.load()
    rms = tuple(reward.load(path) for path in judges)
    policy = copy.deepcopy(start)
    few = sample_pool_stage.asked(village, view.few, seed)
    looks: list[dict] = []
    rows: list[dict] = []

    def watch(policy: Llama) -> dict[str, float]:
        n = view.few_answers
        table = seen(
            policy, start, rms, vocabulary, village, few, config, n=n, seed=view.seed
        )
        looks.append({"seen": as_columns(table), "policy": copy.deepcopy(policy)})
        return {}

    if prompts:
        _round(policy, vocabulary, village, rms, config, rejection, prompts, seed)
    if iterations:
        config = replace(config, iterations=iterations)
        both = SimpleNamespace(ppo=config, rejection=rejection)
        rows = train_ppo(
            policy,
            scorer(rms, vocabulary, REWARDS[rewarded], config.safety_gate),
            vocabulary,
            ppo_stage.asked(village, both, config.batch_size, seed),
            mixture(village, "dev", config.dev_prompts, dict(config.kinds), seed),
            config,
            seed=seed,
            texts=ppo_stage.texts(village, both, vocabulary, seed),
            watch=watch,
            progress=False,
        )
        policy = looks[-1]["policy"]  # not that of the best look
    else:
        watch(policy)
    sampled = [r["iteration"] for r in rows if "dev_score" in r] or [0]
    found = {
        "rows": rows,
        "looks": [
            {
                "answers": prompts * rejection.samples + i * config.batch_size,
                "seen": look["seen"],
            }
            for i, look in zip(sampled, looks, strict=True)
        ],
    }
    if full:
        found["end"] = viewed(policy, start, rms, vocabulary, config, view)
    return found


def _round(
    policy: Llama,
    vocabulary: Tokenizer,
    village: World,
    rms: Judges,
    config: PPOConfig,
    rejection: RejectionConfig,
    n: int,
    seed: int,
) -> None:
    """One round of rejection sampling, in place, on the kinds of the PPO arms.

    Like them without texts beside.
    """
    kinds = dict(config.kinds)
    asked = mixture(village, config.wordings, n, kinds, seed + 77, unique=True)
    found = sample(
        policy,
        rms,
        vocabulary,
        asked,
        rejection,
        round=1,
        temperature=config.temperature,
        gate=config.safety_gate,
        seed=seed,
    )
    chosen = best(ended(found, vocabulary.eos_id))
    lessons = balanced(chosen, config.kinds)
    fine_tune(policy, vocabulary, lessons, rejection, seed=seed, progress=False)
