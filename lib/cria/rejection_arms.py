"""One arm of a comparison beside V1 to V4: train it, let the judge look (paper §3.2.3).

All are functions of their arguments alone, so that `cria.side_by_side` can run two at
once. `cria.rejection_comparisons` says which arms there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from cria import checkpoints, reward, world
from cria.config import (
    PreferencesConfig,
    RejectionConfig,
    RRHFConfig,
)
from cria.evaluate import held_out
from cria.judged import as_columns, judged
from cria.model import Llama
from cria.preferences import collect
from cria.rejection import fine_tune, rescore, sample
from cria.reward_evaluate import ceiling, scored
from cria.rrhf import ranked, train_rrhf
from cria.selection import Sample, balanced, best, ended
from cria.tokenizer import Tokenizer
from cria.world import corpora
from cria.world.prompts import Prompt, mixture

__all__ = ["Look", "accuracies", "branch", "looked_at", "ranking"]
__all__ += ["texts_beside", "tuned"]

RMs = tuple[Path, Path]  # folders of a helpfulness and a safety reward model


@dataclass(frozen=True)
class Look:
    """How the judge looks at a model: so many held-out prompts of every kind, and so
    many answers of every kind at temperature 1, so that a kind with few prompts is
    measured as finely as the others."""

    per_kind: int
    answers: int  # of a kind, all its prompts together
    seed: int
    max_new_tokens: int
    split: str = "test"

    def at(self, model: Llama, vocabulary: Tokenizer, temperature: float) -> dict:
        """`judged.judged`, as columns."""
        village = world.load()
        asked: dict[str, list[Prompt]] = {}
        for prompt in held_out(village, self.split, self.per_kind):
            asked.setdefault(prompt.kind, []).append(prompt)
        seen = [
            judged(
                model,
                vocabulary,
                village,
                several,
                temperature=temperature,
                n=math.ceil(self.answers / len(several)) if temperature else 1,
                seed=self.seed,
                max_new_tokens=self.max_new_tokens,
            )
            for several in asked.values()
        ]
        return as_columns(pd.concat(seen, ignore_index=True))


def looked_at(folder: Path, look: Look) -> dict[str, dict]:
    """A finished model: "sampled" (temperature 1) and "greedy"."""
    model, vocabulary = _load(folder)
    return {
        name: look.at(model, vocabulary, temperature)
        for name, temperature in (("sampled", 1.0), ("greedy", 0.0))
    }


def tuned(
    folder: Path,
    lessons: Sequence[Sample],
    config: RejectionConfig,
    look: Look,
    *,
    seed: int,
    texts: Sequence[Sequence[int]] = (),
) -> dict:
    """The model in ``folder`` fine-tuned on these answers: what the judge sees then."""
    model, vocabulary = _load(folder)
    fine_tune(
        model, vocabulary, lessons, config, seed=seed, texts=texts, progress=False
    )
    return look.at(model, vocabulary, 1.0)


def ranking(
    folder: Path,
    samples: Sequence[Sample],
    config: RRHFConfig,
    look: Look,
    *,
    seed: int,
    dtype: str,
) -> dict:
    """The same by RRHF, from all of the samples."""
    model, vocabulary = _load(folder)
    train_rrhf(
        model,
        ranked(samples, vocabulary),
        config,
        seed=seed,
        dtype=dtype,
        progress=False,
    )
    return look.at(model, vocabulary, 1.0)


def branch(
    folder: Path,
    first: Sequence[Sample],
    judges: Sequence[RMs],
    config: RejectionConfig,
    look: Look,
    *,
    pool: Literal["all", "previous"],
    later: Mapping[str, float],
    prompts: int,
    temperature: float,
    gate: float,
    seed: int,
    beside: bool = False,
) -> dict[str, dict]:
    """Rounds 1, 2, … from the model in ``folder``: {"V1": what the judge sees, …}.

    first: the best answers of round 1.  judges: the reward models of every later round.
    pool: learn from the best answers of all rounds so far, scored anew by the newest
    reward models, or from those of the round alone.  later: the mix of kinds that is
    asked from round 2 on.  beside: repeat rare kinds and read texts beside the answers,
    as the road does; without, the paper's plain form.
    """
    model, vocabulary = _load(folder)
    village = world.load()
    kept, lessons, seen = list(first), list(first), {}
    for round in range(1, len(judges) + 2):
        key = 1000 * seed + 500 + round  # other prompts than the road's, every round
        if round > 1:
            rms = tuple(reward.load(path) for path in judges[round - 2])
            split = config.wordings[round - 1]
            asked = mixture(village, split, prompts, dict(later), key, unique=True)
            new = sample(
                model,
                rms,
                vocabulary,
                asked,
                config,
                round=round,
                temperature=temperature,
                gate=gate,
                seed=100 * key,
            )
            lessons = best(ended(new, vocabulary.eos_id))
            if pool == "all":
                kept = [*kept, *lessons]
                known = rescore(kept, rms, vocabulary, gate)
                lessons = best(ended(known, vocabulary.eos_id))
        texts = []
        if beside:
            lessons = balanced(lessons, config.kinds)
            texts = texts_beside(lessons, config, vocabulary, key)
        fine_tune(
            model, vocabulary, lessons, config, seed=seed, texts=texts, progress=False
        )
        seen[f"V{round}"] = look.at(model, vocabulary, 1.0)
    return seen


def texts_beside(
    lessons: Sequence[Sample],
    config: RejectionConfig,
    vocabulary: Tokenizer,
    seed: int,
) -> list[list[int]]:
    """Texts that tell the truth, `config.texts` tokens of them per token of answers."""
    n_tokens = config.texts * sum(len(s.ids) for s in lessons)
    if n_tokens == 0:
        return []
    mix = dict(config.text_mix)
    return corpora.stream(world.load(), mix, n_tokens, vocabulary, seed)


def accuracies(
    folder: Path,
    judges: Mapping[str, RMs],
    n: Mapping[str, int],
    config: PreferencesConfig,
    *,
    seed: int,
) -> dict[str, dict]:
    """How well reward models rank new answers of the model in ``folder``.

    Annotators compare pairs of its answers to held-out prompts, n[ground] of them
    (identical ones are dropped). Returns by ground "right" (name of the reward models →
    1 for every pair ranked right, 0.5 for a tie, 0 for wrong) and "ceiling", the share
    that the gold judge itself ranks as the annotators did: theirs are noisy labels, and
    two good answers are hard to tell apart.
    """
    model, vocabulary = _load(folder)
    village = world.load()
    found = {}
    for i, (ground, several) in enumerate(n.items()):
        pairs = collect(
            village,
            [model],
            vocabulary,
            ground,
            several,
            config,
            split="test",
            seed=seed,
        ).comparisons
        right = {
            name: scored(reward.load(rms[i]), vocabulary, pairs)["right"].tolist()
            for name, rms in judges.items()
        }
        found[ground] = {
            "right": right,
            "ceiling": ceiling(village, pairs)["average"],
        }
    return found


def _load(folder: Path) -> tuple[Llama, Tokenizer]:
    return checkpoints.load(folder), Tokenizer(folder / "tokenizer.model")
