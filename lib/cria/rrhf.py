"""RRHF (Yuan et al. 2023, arXiv 2304.05302): learn from the ranking of K answers.

Rejection sampling keeps the best answer and forgets the rest. RRHF learns from all of
them in one pure loss, without PPO's critic:

    L = Σ_{r_i < r_j} max(0, p_i − p_j)  −  log π(best answer)
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rrhf_loss"]


def rrhf_loss(
    mean_logprobs: Tensor, rewards: Tensor, best_logprob: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The loss of B prompts with K answers each (eqs. 2–4), the mean over prompts.

    mean_logprobs (B, K): p_i, log π of an answer ÷ its tokens.  rewards (B, K).
    best_logprob (B,): the whole log π of the answer with the highest reward.

    metrics: "ranking", the first term alone, and "in_order", the share of pairs of
    unequal reward that the model's own p_i ranks right.
    """
    if mean_logprobs.shape != rewards.shape or best_logprob.shape != rewards.shape[:1]:
        raise ValueError(
            "rrhf_loss needs (B, K), (B, K) and (B,); got "
            f"{tuple(mean_logprobs.shape)}, {tuple(rewards.shape)} and "
            f"{tuple(best_logprob.shape)}."
        )
    worse = rewards[:, :, None] < rewards[:, None, :]  # i is worse than j
    gap = mean_logprobs[:, :, None] - mean_logprobs[:, None, :]  # p_i − p_j
    ranking = torch.where(worse, gap.clamp(min=0), 0.0).sum((1, 2))
    loss = (ranking - best_logprob).mean()
    pairs = int(worse.sum())
    right = int((worse & (gap < 0)).sum())
    return loss, {
        "ranking": float(ranking.detach().mean()),
        "in_order": right / pairs if pairs else 1.0,
    }
