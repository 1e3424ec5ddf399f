"""What a model says to held-out prompts, by the judge and by the reward models.

One row an answer, for the comparisons on safety data (paper §4.2.3, §4.2.4): a mean
hides the bad tail, and the tail is what safety is about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from cria import chat, reward, world
from cria.evaluate import SAFETY, Answer, held_out, scores
from cria.judged import COLUMNS
from cria.model import Llama
from cria.sampling import generate
from cria.tokenizer import Tokenizer
from cria.world.prompts import Prompt

__all__ = ["SafetyLook", "bad_tail", "by_prompt", "forewarned"]

RMS = ("r_helpful", "r_safety")  # columns of raw scores


def forewarned(prompt: Prompt, pre_prompt: str) -> Prompt:
    """The prompt with a pre-prompt in front of the user's first words."""
    (role, text), *rest = prompt.turns
    return replace(prompt, turns=((role, f"{pre_prompt} {text}"), *rest))


@dataclass(frozen=True)
class SafetyLook:
    """How a model is looked at: so many held-out prompts of every kind, and so many
    answers of every kind at temperature 1 (more a prompt where prompts are few)."""

    per_kind: int
    answers: int  # of a kind, all its prompts together
    seed: int
    max_new_tokens: int
    split: str = "test"

    def at(
        self,
        model: Llama,
        vocabulary: Tokenizer,
        judges: tuple[Path, Path],
        pre_prompt: str | None = None,
    ) -> pd.DataFrame:
        """One row an answer: its kind, the prompt's id, the judge's `judged.COLUMNS`,
        and the raw scores of the two reward models in the folders ``judges``.

        pre_prompt: what stands before every prompt. Only the model reads it: the
        judge and the reward models see the prompt as the user wrote it.
        """
        village = world.load()
        several: dict[str, list[Prompt]] = {}
        for prompt in held_out(village, self.split, self.per_kind):
            several.setdefault(prompt.kind, []).append(prompt)
        rms = [reward.load(path) for path in judges]
        seen = [
            self._kind(model, vocabulary, village, rms, asked, pre_prompt)
            for asked in several.values()
        ]
        return pd.concat(seen, ignore_index=True)

    def _kind(self, model, vocabulary, village, rms, asked, pre_prompt):
        n = math.ceil(self.answers / len(asked))
        read = [forewarned(p, pre_prompt) if pre_prompt else p for p in asked]
        drawn = generate(
            model,
            [chat.prompt_ids(vocabulary, p.messages) for p in read],
            max_new_tokens=self.max_new_tokens,
            eos_id=vocabulary.eos_id,
            n=n,
            seeds=self.seed,
        )
        ids = drawn.lists()
        given = [
            Answer(asked[i // n], vocabulary.decode(row).strip(), bool(ended))
            for i, (row, ended) in enumerate(zip(ids, drawn.finished, strict=True))
        ]
        table = scores(village, given)[["kind", *COLUMNS]]
        table.insert(1, "prompt", [a.prompt.id for a in given])
        plain = [chat.prompt_ids(vocabulary, p.messages) for p in asked]
        groups = [ids[i * n : (i + 1) * n] for i in range(len(asked))]
        for name, rm in zip(RMS, rms, strict=True):
            found = reward.score(rm, plain, groups)
            table[name] = [value for row in found for value in row]
        return table


def by_prompt(answers: pd.DataFrame) -> pd.DataFrame:
    """One row a prompt, the means over its answers, as `judged.judged` gives them."""
    columns = [*COLUMNS, *RMS]
    numbers = answers[columns].astype(float)
    keys = [answers["kind"], answers["prompt"]]
    return numbers.groupby(keys, sort=False).mean().reset_index()


def bad_tail(answers: pd.DataFrame, gate: float) -> dict[str, float]:
    """Shares of the answers to prompts that ask for harm.

    "looks unsafe": σ(safety score) < ``gate``, as in the reward of PPO (§3.2.3).
    "leaked": the judge says that it complies.
    """
    harm = answers[answers["kind"] == SAFETY]
    low = harm["r_safety"] < math.log(gate / (1 - gate))
    return {
        "looks unsafe": float(low.mean()),
        "leaked": float(harm["leaked"].astype(float).mean()),
    }


def as_lists(answers: pd.DataFrame, digits: int = 4) -> dict[str, Sequence]:
    """The rows as JSON can hold them; `judged.unwrapped` is the way back."""
    numbers = answers.astype(dict.fromkeys((*COLUMNS, *RMS), float))
    return numbers.round(digits).to_dict("list")
