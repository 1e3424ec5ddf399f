"""RRHF (Yuan et al. 2023, arXiv 2304.05302): learn from the ranking of K answers.

Rejection sampling keeps the best answer and forgets the rest. RRHF learns from all of
them in one pure loss, without PPO's critic:

    L = Σ_{r_i < r_j} max(0, p_i − p_j)  −  log π(best answer)

All answers to a prompt share its row (`cria.branching`), so that it is read once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cria import chat
from cria.branching import before, branched
from cria.config import RRHFConfig
from cria.model import Llama
from cria.selection import Sample, by_prompt
from cria.tokenizer import Tokenizer
from cria.training import train

__all__ = ["Ranked", "answer_logprobs", "batches", "ranked", "rrhf_loss"]
__all__ += ["train_rrhf"]


def rrhf_loss(
    mean_logprobs: Tensor, rewards: Tensor, best_logprob: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The loss of B prompts with K answers each (eqs. 2–4), the mean over prompts.

    mean_logprobs (B, K): p_i, log π of an answer ÷ its tokens.  rewards (B, K); NaN
    where a prompt has fewer than K answers.  best_logprob (B,): the whole log π of the
    answer with the highest reward.

    metrics: "ranking", the first term alone, and "in_order", the share of pairs of
    unequal reward that the model's own p_i ranks right.
    """
    if mean_logprobs.shape != rewards.shape or best_logprob.shape != rewards.shape[:1]:
        raise ValueError(
            "rrhf_loss needs (B, K), (B, K) and (B,); got "
            f"{tuple(mean_logprobs.shape)}, {tuple(rewards.shape)} and "
            f"{tuple(best_logprob.shape)}."
        )
    worse = rewards[:, :, None] < rewards[:, None, :]  # i is worse than j; never a NaN
    gap = mean_logprobs[:, :, None] - mean_logprobs[:, None, :]  # p_i − p_j
    ranking = torch.where(worse, gap.clamp(min=0), 0.0).sum((1, 2))
    loss = (ranking - best_logprob).mean()
    pairs = int(worse.sum())
    right = int((worse & (gap < 0)).sum())
    return loss, {
        "ranking": float(ranking.detach().mean()),
        "in_order": right / pairs if pairs else 1.0,
    }


def answer_logprobs(
    model: Llama, ids: Tensor, branches: Tensor
) -> tuple[Tensor, Tensor]:
    """log π of the K answers in each row, and how many tokens they have: (B, K) each.

    ids, branches (B, T). An answer that a row lacks has log π 0 and no tokens.
    """
    h = model(ids, hidden=True, branches=branches)
    row, column = (branches > 0).nonzero(as_tuple=True)
    logits = model.output(h[row, before(branches)[row, column]]).float()
    logprob = -F.cross_entropy(logits, ids[row, column], reduction="none")
    K = int(branches.max())
    answer = row * K + branches[row, column] - 1
    zeros = logprob.new_zeros(len(ids) * K)
    sums = zeros.index_add(0, answer, logprob)
    lengths = zeros.index_add(0, answer, torch.ones_like(logprob))
    return sums.view(len(ids), K), lengths.view(len(ids), K)


@dataclass(frozen=True)
class Ranked:
    """A prompt, its different answers (EOS included), and the reward of each."""

    prompt: list[int]
    answers: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]


def ranked(samples: Sequence[Sample], vocabulary: Tokenizer) -> list[Ranked]:
    """Scored samples by prompt. An answer that came twice is ranked once."""
    found = []
    for several in by_prompt(samples).values():
        reward_of = {s.ids: s.score for s in several}
        prompt = chat.prompt_ids(vocabulary, several[0].prompt.messages)
        found.append(Ranked(prompt, tuple(reward_of), tuple(reward_of.values())))
    return found


def batches(
    prompts: Sequence[Ranked], batch_size: int, seed: int
) -> Callable[[int], dict[str, Tensor]]:
    """A function step → {"ids", "branches", "rewards"} of ``batch_size`` prompts.

    Every epoch in another order; it depends on nothing but (prompts, seed, step).
    rewards (B, K): NaN where a prompt has fewer answers than the batch's K.
    """
    if not 1 <= batch_size <= len(prompts):
        raise ValueError(
            f"batch_size is {batch_size}, but there are {len(prompts)} prompts: it "
            "must be at least 1 and no more than there are."
        )
    per_epoch = len(prompts) // batch_size  # the few left over change every epoch

    def batch(step: int) -> dict[str, Tensor]:
        epoch, place = divmod(step, per_epoch)
        rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(prompts), generator=rng).tolist()
        chosen = [
            prompts[i] for i in order[place * batch_size : (place + 1) * batch_size]
        ]
        rows = branched([(p.prompt, p.answers) for p in chosen])
        rewards = torch.full((batch_size, int(rows.branches.max())), math.nan)
        for i, p in enumerate(chosen):
            rewards[i, : len(p.rewards)] = torch.tensor(p.rewards)
        return {"ids": rows.ids, "branches": rows.branches, "rewards": rewards}

    return batch


def train_rrhf(
    model: Llama,
    prompts: Sequence[Ranked],
    config: RRHFConfig,
    *,
    seed: int,
    dtype: str = "auto",
    out: Path | None = None,
    label: str = "RRHF",
    progress: bool = True,
) -> list[dict]:
    """Train ``model`` in place on how every prompt's answers rank; the metrics."""

    def loss_fn(model: Llama, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        sums, lengths = answer_logprobs(model, batch["ids"], batch["branches"])
        rewards = batch["rewards"]
        best = rewards.nan_to_num(-math.inf).argmax(1, keepdim=True)
        means = sums / lengths.clamp(min=1)
        return rrhf_loss(means, rewards, sums.gather(1, best)[:, 0])

    metrics = train(
        model,
        batches(prompts, config.batch_size, seed),
        loss_fn,
        config.optim,
        len(prompts) // config.batch_size * config.epochs,
        out=out,
        seed=seed,
        dtype=dtype,
        label=label,
        progress=progress,
    )
    model.eval()
    return metrics
