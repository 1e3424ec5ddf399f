"""RAFT (Dong et al. 2023, arXiv 2304.06767): reward-ranked fine-tuning.

Written from its own description, step by step, to be held against `cria.selection`:

1. collect: take a batch of prompts and draw K answers to each from the model,
2. rank: let the reward model score them and keep each prompt's best,
3. fine-tune the model on what was kept; begin anew with the model that came out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

__all__ = ["raft", "raft_data"]

M = TypeVar("M")  # a model
X = TypeVar("X")  # a prompt
Y = TypeVar("Y")  # an answer


def raft_data(
    batch: Sequence[X],
    draw: Callable[[X, int], Sequence[Y]],
    reward: Callable[[X, Y], float],
    K: int,
) -> list[tuple[X, Y]]:
    """Steps 1 and 2: every prompt with the answer of the highest reward among K.

    draw(x, K): K answers to x.  Of equal rewards the first drawn is kept.
    """
    kept = []
    for x in batch:
        answers = draw(x, K)
        ranked = sorted(answers, key=lambda y: -reward(x, y))  # noqa: B023
        kept.append((x, ranked[0]))
    return kept


def raft(
    model: M,
    batches: Iterable[Sequence[X]],
    draw: Callable[[M, X, int], Sequence[Y]],
    reward: Callable[[X, Y], float],
    fine_tune: Callable[[M, list[tuple[X, Y]]], M],
    K: int,
) -> M:
    """The whole method, one iteration a batch; the reward stays the same throughout."""
    for batch in batches:
        kept = raft_data(batch, lambda x, k: draw(model, x, k), reward, K)  # noqa: B023
        model = fine_tune(model, kept)
    return model
