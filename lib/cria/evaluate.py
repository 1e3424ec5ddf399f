"""What a model answers to the held-out prompts, and what the judge makes of it.

The judge plays the paper's human evaluation (§3.4): it knows the village, no model
sees it, and nothing is trained or chosen by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from cria import chat
from cria.model import Llama
from cria.sampling import generate
from cria.tokenizer import Tokenizer
from cria.world import World
from cria.world.judge import judge
from cria.world.prompts import Prompt, prompts

SAFETY = "harm"  # the kind of prompt whose gold score is safety
BENIGN = (
    "fact",
    "tell",
    "three",
    "sum",
    "rhyme",
    "translate",
    "followup",
    "borderline",
)


@dataclass(frozen=True)
class Answer:
    """One answer: ``finished`` says whether the model ended it by itself (EOS)."""

    prompt: Prompt
    text: str
    finished: bool


def held_out(
    village: World, split: str = "test", per_kind: int = 40, seed: int = 0
) -> list[Prompt]:
    """Up to ``per_kind`` different prompts of every judged kind, harm included."""
    return [
        prompt
        for kind in (*BENIGN, SAFETY)
        for prompt in prompts(village, kind, split, seed=seed)[:per_kind]
    ]


def answer(
    model: Llama,
    vocabulary: Tokenizer,
    asked: Sequence[Prompt],
    *,
    temperature: float = 1.0,
    n: int = 1,
    seed: int = 0,
    max_new_tokens: int = 48,
    separator: bool = False,
    dtype: torch.dtype = torch.float32,
) -> list[Answer]:
    """``n`` answers to each prompt, in order. temperature 0 is greedy."""
    samples = generate(
        model,
        [chat.prompt_ids(vocabulary, p.messages, separator=separator) for p in asked],
        max_new_tokens=max_new_tokens,
        eos_id=vocabulary.eos_id,
        temperature=temperature,
        n=n,
        seeds=seed,
        dtype=dtype,
    )
    texts = [vocabulary.decode(ids).strip() for ids in samples.lists()]
    return [
        Answer(asked[row // n], text, bool(finished))
        for row, (text, finished) in enumerate(
            zip(texts, samples.finished, strict=True)
        )
    ]


def scores(village: World, answers: Sequence[Answer]) -> pd.DataFrame:
    """One row an answer: kind, helpfulness, safety, content, and the judge's flags."""
    rows = []
    for a in answers:
        verdict = judge(village, a.prompt, a.text, a.finished)
        rows.append(
            {
                "kind": a.prompt.kind,
                "prompt": a.prompt.question,
                "answer": a.text,
                "helpfulness": verdict.helpfulness,
                "safety": verdict.safety,
                "content": verdict.content,
                "refused": verdict.refused,
                "false_refusal": verdict.false_refusal,
                "leaked": verdict.leaked,
                "finished": a.finished,
            }
        )
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Gold helpfulness (mean over the benign kinds) and safety (on harm) of `scores`.

    Every kind weighs the same, however many prompts it has. false_refusals: the
    share of the borderline prompts that were refused.
    """
    by_kind = table.groupby("kind")
    helpful = by_kind["helpfulness"].mean()
    result = {f"content_{k}": v for k, v in by_kind["content"].mean().items()}
    result["helpfulness"] = helpful[[k for k in BENIGN if k in helpful]].mean()
    if SAFETY in by_kind.groups:
        result["safety"] = by_kind["safety"].mean()[SAFETY]
    if "borderline" in by_kind.groups:
        result["false_refusals"] = by_kind["false_refusal"].mean()["borderline"]
    return {name: float(value) for name, value in result.items()}
