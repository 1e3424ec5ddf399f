"""The bad tail of a model's answers (paper §5.1, Fig. 20).

A mean can rise because good answers become better. RLHF is said to do something else:
to cut off the worst ones. Every kind of prompt weighs the same here, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from cria.intervals import Interval

__all__ = ["lowest", "share_under", "tail_change", "weights"]

Statistic = Callable[[np.ndarray, np.ndarray], float]  # (values, weights) → number


def weights(kinds: Sequence[str]) -> np.ndarray:
    """How much each answer weighs, by its kind: kinds alike, and 1 in all."""
    kinds = pd.Series(list(kinds))
    count = kinds.map(kinds.value_counts())
    return (1 / (count * kinds.nunique())).to_numpy()


def share_under(values: np.ndarray, weight: np.ndarray, bound: float) -> float:
    """The share of answers whose value is below ``bound``."""
    return float(weight[np.asarray(values) < bound].sum() / weight.sum())


def lowest(values: np.ndarray, weight: np.ndarray, share: float = 0.1) -> float:
    """The mean value of the lowest ``share`` of answers.

    The answer at the edge counts with the part of its weight that is inside.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share:g}; it must be above 0, at most 1.")
    order = np.argsort(values, kind="stable")
    wanted = share * weight.sum()
    before = np.cumsum(weight[order]) - weight[order]
    inside = np.clip(wanted - before, 0, weight[order])
    return float((np.asarray(values)[order] * inside).sum() / wanted)


def tail_change(
    after: pd.DataFrame,
    before: pd.DataFrame,
    column: str,
    statistic: Statistic,
    draws: int = 300,
    seed: int = 0,
) -> Interval:
    """after − before of a statistic of all answers, with its 95 % interval.

    The interval is a bootstrap's, 1.96 of its standard deviations to either side:
    prompts are drawn anew within their kinds, the same ones for both models.
    One row an answer, with the columns kind and id (the prompt's). Raises ValueError
    if the prompts differ.
    """
    tables = [_by_prompt(table, column) for table in (after, before)]
    if tables[0].keys() != tables[1].keys():
        raise ValueError("the two models were not asked the same prompts.")
    groups: dict[str, list] = {}
    for key in tables[0]:
        groups.setdefault(key[0], []).append(key)
    rng = np.random.default_rng(seed)

    def gap(drawn: dict[str, list]) -> float:
        return np.subtract(*(_statistic(table, drawn, statistic) for table in tables))

    redrawn = [
        gap({k: [v[i] for i in rng.integers(len(v), size=len(v))]
             for k, v in groups.items()})
        for _ in range(draws)
    ]  # fmt: skip
    half = 1.96 * float(np.std(redrawn)) if redrawn else 0.0
    return Interval(float(gap(groups)), half, len(tables[0]))


def _by_prompt(table: pd.DataFrame, column: str) -> dict[tuple, np.ndarray]:
    groups = table.groupby(["kind", "id"], sort=True)[column]
    return {key: several.to_numpy(float) for key, several in groups}


def _statistic(table: dict, drawn: dict[str, list], statistic: Statistic) -> float:
    """Of the answers to the drawn prompts; every kind has the same weight in all."""
    parts = [np.concatenate([table[key] for key in keys]) for keys in drawn.values()]
    weight = [np.full(len(part), 1 / (len(part) * len(parts))) for part in parts]
    return statistic(np.concatenate(parts), np.concatenate(weight))
