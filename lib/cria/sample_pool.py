"""A pool of answers, sampled and scored once (paper §3.2.3): what notebook 07 draws on.

    pool = load(stages.get("bon_pool").path)
    t = pool.index(1.0)                    # the row of temperature 1
    expected_best(pool.combined[t], pool.gold_helpfulness[t], 8)

P held-out prompts, T temperatures, M answers each: every curve over N, for any reward,
at any temperature, comes from these, and no answer is sampled or scored twice. The
reward models' scores stand beside the judge's, whom no model has seen.
`cria.sample_pool_stage` samples it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cria.evaluate import SAFETY
from cria.provenance import write_json
from cria.world.prompts import Prompt

__all__ = ["SamplePool", "load", "save"]

TENSORS = "pool.safetensors"
WORDS = "pool.json"


@dataclass(frozen=True)
class SamplePool:
    """P prompts, T rising temperatures, M samples each; every tensor is (T, P, M).

    texts[p]: the different answers to prompt p.  answer: which of them a sample is.
    helpful, safety, plain: scores of the reward models, raw.  combined: R_c, as PPO
    will use it.  logprob: mean log p a token of the answer under the model that
    gave it, at temperature 1.  gold_helpfulness, gold_safety: the judge's.
    finished: did it end by itself (EOS)?  length: in tokens, EOS included.
    """

    prompts: tuple[Prompt, ...]
    temperatures: tuple[float, ...]
    texts: tuple[tuple[str, ...], ...]
    answer: Tensor
    helpful: Tensor
    safety: Tensor
    plain: Tensor
    combined: Tensor
    logprob: Tensor
    gold_helpfulness: Tensor
    gold_safety: Tensor
    finished: Tensor
    length: Tensor

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its prompts, each once."""
        return tuple(dict.fromkeys(prompt.kind for prompt in self.prompts))

    @property
    def gold(self) -> Tensor:
        """The judge's score of what was asked for: safety on harm, else helpfulness."""
        return torch.where(self.harm[:, None], self.gold_safety, self.gold_helpfulness)

    @property
    def harm(self) -> Tensor:
        """Which prompts ask for harm: (P,) bool."""
        return torch.tensor([prompt.kind == SAFETY for prompt in self.prompts])

    def index(self, temperature: float) -> int:
        """The row of a temperature. Raises ValueError for one that was not sampled."""
        if temperature not in self.temperatures:
            known = ", ".join(f"{t:g}" for t in self.temperatures)
            raise ValueError(
                f"nothing was sampled at temperature {temperature:g}, only at {known}."
            )
        return self.temperatures.index(temperature)

    def of(self, kinds: Collection[str]) -> SamplePool:
        """The prompts of these kinds alone. Raises ValueError if there are none."""
        if isinstance(kinds, str):
            kinds = (kinds,)
        keep = [p for p, prompt in enumerate(self.prompts) if prompt.kind in kinds]
        if not keep:
            raise ValueError(
                f"the pool has no prompt of {', '.join(kinds)}, only of "
                f"{', '.join(self.kinds)}."
            )
        return replace(
            self,
            prompts=tuple(self.prompts[p] for p in keep),
            texts=tuple(self.texts[p] for p in keep),
            **{name: getattr(self, name)[:, keep] for name in _TENSORS},
        )

    def text(self, t: int, p: int, m: int) -> str:
        """Sample m at temperature ``temperatures[t]`` of prompt p."""
        return self.texts[p][int(self.answer[t, p, m])]


_WORDS = ("prompts", "temperatures", "texts")
_TENSORS = tuple(f.name for f in fields(SamplePool) if f.name not in _WORDS)


def save(pool: SamplePool, folder: str | Path) -> None:
    """Write the pool into a folder: whole, or not there at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WORDS).unlink(missing_ok=True)  # without it there is no pool
    unfinished = folder / f".{TENSORS}.unfinished"
    save_file({name: getattr(pool, name).contiguous() for name in _TENSORS}, unfinished)
    os.replace(unfinished, folder / TENSORS)
    write_json(
        folder / WORDS,
        {
            "temperatures": list(pool.temperatures),
            "prompts": [prompt.to_dict() for prompt in pool.prompts],
            "texts": pool.texts,
        },
    )


def load(folder: str | Path) -> SamplePool:
    """The pool that `save` wrote (or that a stage's folder holds).

    Raises FileNotFoundError if there is none, ValueError if it is damaged.
    """
    folder = Path(folder)
    if not ((folder / WORDS).is_file() and (folder / TENSORS).is_file()):
        raise FileNotFoundError(f"{folder.name} holds no pool of samples.")
    try:
        words = json.loads((folder / WORDS).read_text("utf-8"))
        tensors = load_file(folder / TENSORS)
        pool = SamplePool(
            tuple(Prompt.from_dict(row) for row in words["prompts"]),
            tuple(words["temperatures"]),
            tuple(map(tuple, words["texts"])),
            **tensors,
        )
        shape = (len(pool.temperatures), len(pool.prompts))
        known = torch.tensor([len(texts) for texts in pool.texts])
        if any(x.ndim != 3 or x.shape[:2] != shape for x in tensors.values()):
            raise ValueError(f"its tensors do not have the shape {shape} in front")
        if len(known) != shape[1] or (pool.answer >= known[:, None]).any():
            raise ValueError("its answers have no text")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the pool in {folder.name} is damaged: {error}") from None
    return pool
