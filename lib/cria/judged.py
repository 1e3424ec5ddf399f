"""The judge's view of a model prompt by prompt, with intervals (paper §3.4).

    before, after = (judged(m, vocabulary, village, asked) for m in (sft, v1))
    over_kinds(after["helpfulness"], after["kind"])     # a mean and its 95 % interval
    gain(after, before, "helpfulness")                  # the same prompts, so paired

A mean over kinds weighs every kind the same, as `evaluate.summary` does: the village
has many prompts on facts and few on rhymes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import pandas as pd

from cria.evaluate import BENIGN, SAFETY, answer, scores
from cria.intervals import Interval
from cria.model import Llama
from cria.tokenizer import Tokenizer
from cria.world import World
from cria.world.prompts import Prompt

__all__ = ["COLUMNS", "GOLD", "as_columns", "gain", "gold", "judged", "over_kinds"]
__all__ += ["unwrapped"]

COLUMNS = ("helpfulness", "safety", "content", "refused", "false_refusal", "leaked")
GOLD = {  # what is reported of a model: the judge's column, on which kinds
    "helpfulness": ("helpfulness", BENIGN),
    "safety": ("safety", (SAFETY,)),
    "false refusals": ("false_refusal", ("borderline",)),
}


def judged(
    model: Llama,
    vocabulary: Tokenizer,
    village: World,
    asked: Sequence[Prompt],
    *,
    temperature: float = 1.0,
    n: int = 1,
    seed: int = 0,
    max_new_tokens: int = 48,
) -> pd.DataFrame:
    """One row a prompt: its kind, the question, and the means over ``n`` answers of
    the judge's `COLUMNS` (each 0 to 1). temperature 0 is greedy."""
    answers = answer(
        model,
        vocabulary,
        asked,
        temperature=temperature,
        n=n,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    table = scores(village, answers)
    means = table[list(COLUMNS)].astype(float).groupby(table.index // n).mean()
    means.insert(0, "kind", [prompt.kind for prompt in asked])
    means.insert(1, "prompt", [prompt.question for prompt in asked])
    return means


def as_columns(table: pd.DataFrame) -> dict[str, list]:
    """The table as JSON can hold it; `unwrapped` is the way back."""
    return table.round(5).to_dict("list")


def unwrapped(columns: dict[str, list]) -> pd.DataFrame:
    """The table that `as_columns` wrote."""
    return pd.DataFrame(columns)


def over_kinds(values: Sequence[float], kinds: Sequence[str]) -> Interval:
    """The mean over kinds of the mean over a kind's prompts, and its 95 % interval.

    The prompts are what varies: within a kind they are taken for independent draws,
    and the kinds themselves for fixed. A kind with one prompt adds no width. NaN for
    no prompts at all.
    """
    groups = pd.Series(list(values), dtype=float).groupby(list(kinds))
    means, spread, n = groups.mean(), groups.var().fillna(0.0), groups.size()
    variance = float((spread / n).sum()) / max(len(means), 1) ** 2
    return Interval(float(means.mean()), 1.96 * math.sqrt(variance), int(n.sum()))


def gold(table: pd.DataFrame) -> dict[str, Interval]:
    """Helpfulness (benign kinds), safety (harm), false refusals (borderline)."""
    return {name: _mean(table, column, on) for name, (column, on) in GOLD.items()}


def gain(
    after: pd.DataFrame,
    before: pd.DataFrame,
    name: str,
    kinds: Collection[str] | None = None,
) -> Interval:
    """after − before of a measure of `GOLD`, or of a column on ``kinds``, paired.

    Raises ValueError if the two tables are not of the same prompts.
    """
    same = ["kind", "prompt"]
    if (
        not after[same]
        .reset_index(drop=True)
        .equals(before[same].reset_index(drop=True))
    ):
        raise ValueError("the two models were not asked the same prompts.")
    column, on = (name, kinds) if kinds is not None else GOLD[name]
    difference = after.assign(**{column: after[column] - before[column]})
    return _mean(difference, column, on)


def _mean(table: pd.DataFrame, column: str, kinds: Collection[str]) -> Interval:
    rows = table[table["kind"].isin(list(kinds))]
    return over_kinds(rows[column], rows["kind"])
