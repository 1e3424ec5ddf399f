"""How good is a reward model? Accuracy by grade, calibration, and what it looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
import torch.nn.functional as F

from cria import chat
from cria.config import GRADES
from cria.preferences import Comparison
from cria.reward import RewardModel, score
from cria.reward_data import answer_ids, encode
from cria.tokenizer import Tokenizer
from cria.world import World
from cria.world.contrasts import PROBES, contrasts
from cria.world.judge import judge

__all__ = ["accuracy", "calibration", "ceiling", "content_probe", "scored"]
__all__ += ["unsafe_recall"]


def scored(
    model: RewardModel, vocabulary: Tokenizer, comparisons: Sequence[Comparison]
) -> pd.DataFrame:
    """One row a comparison: grade, kind, safe labels, r_chosen, r_rejected, right.

    right: 1 if the chosen answer scores higher, 0.5 if both score the same, else 0.
    loss: −log σ(r_chosen − r_rejected), without a margin.
    """
    rows = encode(vocabulary, comparisons).rows
    given = torch.tensor(score(model, [p for p, _ in rows], [both for _, both in rows]))
    gap = given[:, 0] - given[:, 1]
    return pd.DataFrame(
        {
            "grade": [c.grade for c in comparisons],
            "kind": [c.prompt.kind if c.prompt else None for c in comparisons],
            "safe_chosen": [c.safe[0] if c.safe else None for c in comparisons],
            "safe_rejected": [c.safe[1] if c.safe else None for c in comparisons],
            "r_chosen": given[:, 0].numpy(),
            "r_rejected": given[:, 1].numpy(),
            "right": ((gap > 0).float() + 0.5 * (gap == 0).float()).numpy(),
            "loss": -F.logsigmoid(gap).numpy(),
        }
    )


def accuracy(table: pd.DataFrame) -> dict[str, float]:
    """Share of pairs ranked right, by grade and over all ("average"), as in Table 8."""
    by_grade = table.groupby("grade")["right"].mean()
    found = {grade: float(by_grade[grade]) for grade in GRADES if grade in by_grade}
    return {**found, "average": float(table["right"].mean())}


def ceiling(village: World, comparisons: Sequence[Comparison]) -> dict[str, float]:
    """What the gold judge itself would reach on these noisy labels: `accuracy`."""
    right = []
    for c in comparisons:
        chosen, rejected = (
            getattr(judge(village, c.prompt, text, ended), c.ground)
            for text, ended in zip(c.answers, c.ended, strict=True)
        )
        right.append((chosen > rejected) + 0.5 * (chosen == rejected))
    grades = [c.grade for c in comparisons]
    return accuracy(pd.DataFrame({"grade": grades, "right": right}))


def content_probe(
    model: RewardModel,
    vocabulary: Tokenizer,
    village: World,
    *,
    n: int = 120,
    split: str = "test",
    seed: int = 0,
) -> dict[str, float]:
    """Share of `world.contrasts` ranked right, by probe: does it judge content?

    Both answers of a contrast have the same manners; only one is right. .5 is chance.
    """
    return {
        probe: _ranked_right(
            model, vocabulary, contrasts(village, probe, n, split, seed)
        )
        for probe in PROBES
    }


def _ranked_right(model, vocabulary, several) -> float:
    asked = [c.prompt.messages for c in several]
    answers = [
        [answer_ids(vocabulary, m, text) for text in (c.right, c.wrong)]
        for m, c in zip(asked, several, strict=True)
    ]
    prompts = [chat.prompt_ids(vocabulary, m) for m in asked]
    given = torch.tensor(score(model, prompts, answers))
    return float((given[:, 0] > given[:, 1]).float().mean())


def calibration(table: pd.DataFrame, bins: int = 8) -> pd.DataFrame:
    """Predicted against seen: bins of p = σ(|r_chosen − r_rejected|), from .5 to 1.

    p is how sure the model is of its own pick; "right" how often the pick was the
    annotators'. Empty bins are left out.
    """
    gap = torch.tensor((table["r_chosen"] - table["r_rejected"]).to_numpy())
    sure = gap.abs().sigmoid().numpy()
    edges = torch.linspace(0.5, 1, bins + 1).tolist()
    made = pd.DataFrame({"predicted": sure, "right": table["right"]})
    groups = made.groupby(pd.cut(sure, edges, include_lowest=True), observed=True)
    result = groups.agg(predicted=("predicted", "mean"), right=("right", "mean"))
    return result.assign(pairs=groups.size()).reset_index(drop=True)


def unsafe_recall(table: pd.DataFrame, threshold: float = 0.5) -> Mapping[str, float]:
    """Of the answers labelled unsafe, the share with σ(score) < threshold; and the
    precision: of the answers below the threshold, the share labelled unsafe. Answers
    without a label are left out; a share of nothing is 0."""
    labelled = [
        (float(row[f"r_{which}"]), not row[f"safe_{which}"])
        for which in ("chosen", "rejected")
        for row in table[table[f"safe_{which}"].notna()].to_dict("records")
    ]
    scores = torch.tensor([score for score, _ in labelled])
    unsafe = torch.tensor([is_unsafe for _, is_unsafe in labelled]).bool()
    below = scores.sigmoid() < threshold
    hit = float((below & unsafe).sum())
    return {
        "recall": hit / max(int(unsafe.sum()), 1),
        "precision": hit / max(int(below.sum()), 1),
        "unsafe": int(unsafe.sum()),
    }
