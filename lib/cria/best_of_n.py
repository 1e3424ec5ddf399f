"""The best of N samples (paper §3.2.3): what it gains, without the noise of drawing.

M samples a prompt hold many draws of N < M. `expected_best` averages over all of them
exactly, by order statistics, instead of making one.
"""

from __future__ import annotations

from math import comb

import torch
from torch import Tensor

__all__ = ["best_weights", "expected_best"]


def best_weights(M: int, N: int) -> Tensor:
    """How often each of M ranked samples is the best of N: (M,), lowest rank first.

    The sample of rank i (from 1) is the best in C(i − 1, N − 1) of the C(M, N) draws.
    Raises ValueError for an N above M: a draw would need a sample twice.
    """
    if not 1 <= N <= M:
        raise ValueError(f"N is {N}, but there are {M} samples a prompt.")
    ways = [comb(i, N - 1) / comb(M, N) for i in range(M)]
    return torch.tensor(ways, dtype=torch.float64)


def expected_best(rewards: Tensor, values: Tensor, N: int) -> Tensor:
    """Mean of ``values`` at the sample with the highest of ``rewards`` among N: (P,).

    rewards, values (P, M): P prompts with M samples each. The rewards themselves as
    values give the curve of the maximum, the judge's scores the gold curve. Samples
    of equal reward share their ranks.
    """
    if rewards.shape != values.shape or rewards.ndim != 2:
        raise ValueError(
            f"rewards {tuple(rewards.shape)} and values {tuple(values.shape)} must "
            "have one shape (prompts, samples)."
        )
    weights = best_weights(rewards.shape[1], N)
    result = torch.zeros(len(rewards), dtype=torch.float64)
    for p, row in enumerate(rewards):
        # Equal rewards: every order among them is as likely, so they share weights.
        _, group, count = row.unique(return_inverse=True, return_counts=True)
        rank = row.argsort()
        shared = torch.zeros(len(count), dtype=torch.float64)
        shared.index_add_(0, group[rank], weights)
        result[p] = ((shared / count)[group] * values[p]).sum()
    return result
