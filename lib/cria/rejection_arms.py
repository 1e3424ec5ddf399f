"""One arm of a comparison beside V1 to V4: train it, let the judge look (paper §3.2.3).

All are functions of their arguments alone, so that `cria.side_by_side` can run two at
once. `cria.rejection_comparisons` says which arms there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Literal

from cria import checkpoints, pretrain, reward, sft, world
from cria.config import (
    ModelConfig,
    OptimConfig,
    PreferencesConfig,
    RejectionConfig,
    RRHFConfig,
)
from cria.evaluate import held_out
from cria.judged import as_columns, judged
from cria.model import Llama
from cria.packing import pack, unpacked
from cria.preferences import collect
from cria.rejection import fine_tune, rescore, sample
from cria.reward_evaluate import scored
from cria.rrhf import ranked, train_rrhf
from cria.selection import Sample, best
from cria.tokenizer import Tokenizer
from cria.world.prompts import mixture

__all__ = ["Look", "accuracies", "branch", "grown", "looked_at", "ranking", "tuned"]

RMs = tuple[Path, Path]  # folders of a helpfulness and a safety reward model


@dataclass(frozen=True)
class Look:
    """How the judge looks at a model: on so many held-out prompts of every kind."""

    per_kind: int
    n: int  # answers to each at temperature 1
    seed: int
    max_new_tokens: int
    split: str = "test"

    def at(self, model: Llama, vocabulary: Tokenizer, temperature: float) -> dict:
        """`judged.judged`, as columns."""
        village = world.load()
        return as_columns(
            judged(
                model,
                vocabulary,
                village,
                held_out(village, self.split, self.per_kind),
                temperature=temperature,
                n=self.n if temperature else 1,
                seed=self.seed,
                max_new_tokens=self.max_new_tokens,
            )
        )


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
    prompts: int,
    temperature: float,
    gate: float,
    seed: int,
    at_most: int | None = None,
) -> dict[str, dict]:
    """Rounds 1, 2, … from the model in ``folder``: {"V1": what the judge sees, …}.

    first: the best answers of round 1.  judges: the reward models of every later round.
    pool: learn from the best answers of all rounds so far, scored anew by the newest
    reward models, or from those of the round alone.  at_most: of the pool take only so
    many, at random, so that both kinds of arm take equally many steps.
    """
    model, vocabulary = _load(folder)
    village = world.load()
    kept, lessons, seen = list(first), list(first), {}
    for round in range(1, len(judges) + 2):
        if round > 1:
            rms = tuple(reward.load(path) for path in judges[round - 2])
            asked = mixture(
                village,
                "train",
                prompts,
                dict(config.kinds),
                1000 * seed + 500 + round,
                unique=True,
            )
            new = sample(
                model,
                rms,
                vocabulary,
                asked,
                config,
                round=round,
                temperature=temperature,
                gate=gate,
                seed=100 * (1000 * seed + 500 + round),
            )
            lessons = best(new)
            if pool == "all":
                kept = [*kept, *lessons]
                lessons = best(rescore(kept, rms, vocabulary, gate))
        if at_most is not None and len(lessons) > at_most:
            lessons = Random(f"pool {seed} {round}").sample(lessons, at_most)
        fine_tune(model, vocabulary, lessons, config, seed=seed, progress=False)
        seen[f"V{round}"] = look.at(model, vocabulary, 1.0)
    return seen


def accuracies(
    folder: Path,
    judges: Mapping[str, RMs],
    n: Mapping[str, int],
    config: PreferencesConfig,
    *,
    seed: int,
) -> dict[str, dict[str, list[float]]]:
    """How well reward models rank new answers of the model in ``folder``.

    Annotators compare pairs of its answers to held-out prompts, n[ground] of them
    (identical ones are dropped). Returns ground → name of the reward models → 1 for
    every pair ranked right, 0.5 for a tie, 0 for wrong.
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
        found[ground] = {
            name: scored(reward.load(rms[i]), vocabulary, pairs)["right"].tolist()
            for name, rms in judges.items()
        }
    return found


def grown(
    model_config: ModelConfig,
    faster: float,
    config,
    vocabulary: Tokenizer,
    *,
    seed: int,
) -> Llama:
    """A chat model of another size, through `config`'s pre-training and SFT.

    Small networks bear larger steps: every learning rate is ``faster`` times as high.
    config: with the sections pretrain and sft.
    """
    village, c = world.load(), config.pretrain
    rows = pretrain.world_rows(
        village, vocabulary, c.mix, c.steps * c.batch_size, c.seq_len, seed
    )
    model, _ = pretrain.train_base(
        model_config,
        rows,
        c.batch_size,
        quicker(c.optim, faster),
        seed=seed,
        dtype=c.dtype,
        label="the small base model",
    )
    c = replace(config.sft, optim=quicker(config.sft.optim, faster))
    written = sft.collect(village, c, "a", seed)
    lay = pack if c.packing else unpacked
    rows = lay(sft.documents(vocabulary, written, c.separator), c.seq_len)
    sft.train_sft(model, rows, c, seed=seed, label="the small chat model")
    return model


def quicker(optim: OptimConfig, faster: float) -> OptimConfig:
    """The same schedule with a peak ``faster`` times as high."""
    return replace(optim, lr=optim.lr * faster)


def _load(folder: Path) -> tuple[Llama, Tokenizer]:
    return checkpoints.load(folder), Tokenizer(folder / "tokenizer.model")
