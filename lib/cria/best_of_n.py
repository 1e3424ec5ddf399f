"""The best of N samples (paper §3.2.3): what it gains, without the noise of drawing.

M samples a prompt hold many draws of N < M. `expected_best` averages over all of them
exactly, by order statistics, instead of making one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

__all__ = ["Peak", "best_temperature", "best_weights", "expected_best"]
__all__ += ["expected_median", "kl_bound", "kl_of_best", "order_weights"]


def order_weights(M: int, N: int, rank: int) -> Tensor:
    """How often each of M ranked samples is the ``rank``-th of N: (M,), lowest first.

    Ranks count from 1, the lowest. Sample i of M is the r-th lowest of a draw if r − 1
    of the draw lie below it and N − r above, so in C(i − 1, r − 1)·C(M − i, N − r) of
    the C(M, N) draws. Raises ValueError for an N above M: a draw would need a sample
    twice; or for a rank that a draw does not have.
    """
    if not 1 <= N <= M:
        raise ValueError(f"N is {N}, but there are {M} samples a prompt.")
    if not 1 <= rank <= N:
        raise ValueError(f"rank is {rank}, but the ranks of {N} go from 1 to {N}.")
    ways = [
        comb(i - 1, rank - 1) * comb(M - i, N - rank) / comb(M, N)
        for i in range(1, M + 1)
    ]
    return torch.tensor(ways, dtype=torch.float64)


def best_weights(M: int, N: int) -> Tensor:
    """How often each of M ranked samples is the best of N: (M,), lowest rank first.

    The sample of rank i (from 1) is the best in C(i − 1, N − 1) of the C(M, N) draws.
    """
    return order_weights(M, N, N)


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


def expected_median(rewards: Tensor, N: int) -> Tensor:
    """Mean, over all draws of N, of the median reward: (P, M) → (P,).

    The median of an even N is the mean of the two in the middle.
    """
    if rewards.ndim != 2:
        raise ValueError(
            f"rewards {tuple(rewards.shape)} must have the shape (prompts, samples)."
        )
    M = rewards.shape[1]
    low, high = (order_weights(M, N, rank) for rank in ((N + 1) // 2, N // 2 + 1))
    return rewards.double().sort(-1).values @ ((low + high) / 2)


def kl_of_best(rewards: Tensor, N: int) -> Tensor:
    """KL(best of N ‖ sampling), in nats, of the samples as a policy: (P, M) → (P,).

    The policy p gives each of the M samples with probability 1/M, so that an answer
    which came k times has k/M. Of N independent draws the best lies among those of
    one reward with probability F^N − F₋^N, where F and F₋ are the shares of samples
    up to and below that reward. Answers of equal reward (a repeated one, above all)
    keep their proportions, so the sum over rewards is the sum over distinct answers.

    Draws are independent, as they are from a model: one may hold a sample twice.
    """
    M = rewards.shape[-1]
    if rewards.ndim != 2 or N < 1:
        raise ValueError(
            f"rewards {tuple(rewards.shape)} must have the shape (prompts, samples), "
            f"and N must be 1 or more; it is {N}."
        )
    result = torch.zeros(len(rewards), dtype=torch.float64)
    for p, row in enumerate(rewards):
        count = row.unique(return_counts=True)[1].double()
        up_to = count.cumsum(0) / M
        chosen = up_to**N - (up_to - count / M).clamp(min=0) ** N
        result[p] = torch.special.xlogy(chosen, chosen * M / count).sum()
    return result.clamp(min=0)


def kl_bound(N: int) -> float:
    """log N − (N − 1)/N: `kl_of_best` reaches it only where no two samples tie."""
    if N < 1:
        raise ValueError(f"N is {N}; it must be 1 or more.")
    return math.log(N) - (N - 1) / N


@dataclass(frozen=True)
class Peak:
    """The temperature with the highest curve, and where it lies in 95 % of redraws.

    draws: the peak of each redraw of the prompts. Two models asked the same prompts,
    with the same seed, are redrawn together: their draws may be subtracted.
    """

    temperature: float
    low: float
    high: float
    draws: Tensor


def best_temperature(
    curves: Tensor, temperatures: Sequence[float], draws: int = 1000, seed: int = 0
) -> Peak:
    """Where the mean over prompts is highest: curves (T, P), one row a temperature.

    Between the temperatures that were tried, a parabola through the highest point and
    its neighbours says where the peak lies. The interval is a bootstrap's: prompts are
    drawn anew, with replacement. Temperatures must rise.
    """
    grid = torch.tensor(temperatures, dtype=torch.float64)
    if curves.ndim != 2 or len(curves) != len(grid) or (grid.diff() <= 0).any():
        raise ValueError(
            f"curves {tuple(curves.shape)} must have one row for each of the "
            f"{len(grid)} temperatures, which must rise."
        )
    P = curves.shape[1]
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(P, (draws, P), generator=generator)
    means = curves.double()[:, index].mean(-1).T  # (draws, T)
    peaks = _peaks(grid, means)
    low, high = peaks.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    here = _peaks(grid, curves.double().mean(1)[None])
    return Peak(float(here), float(low), float(high), peaks)


def _peaks(grid: Tensor, values: Tensor) -> Tensor:
    """The x of the highest y of each row: (T,) and (R, T) → (R,)."""
    top = values.argmax(1)
    peaks = grid[top]
    inner = (top > 0) & (top < len(grid) - 1)
    if inner.any():
        at = top[inner]
        x0, x1, x2 = grid[at - 1], grid[at], grid[at + 1]
        rows = values[inner]
        y0, y1, y2 = (rows.gather(1, (at + k)[:, None])[:, 0] for k in (-1, 0, 1))
        left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)  # > 0 and ≤ 0
        # Between the middles of the two intervals the slope goes from left to right.
        peaks[inner] = (x0 + x1) / 2 + (x2 - x0) / 2 * left / (left - right)
    return peaks
