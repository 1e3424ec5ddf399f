"""Rejection-sampling fine-tuning, V1 to V4 (paper §3.2.3).

A round: sample K answers a prompt from the newest model, score them with the newest
reward models, keep the best one, fine-tune on it as in SFT. Then annotators compare
answers of the *new* model, and both reward models learn from that (§3.2.1), since
their accuracy falls on answers unlike those they know. `cria.rejection_stage` runs it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cria import chat, packing
from cria.best_of_n import expected_best
from cria.config import RejectionConfig, RewardConfig
from cria.model import Llama
from cria.preferences import Comparison
from cria.provenance import write_json
from cria.reward import RewardModel, combine_rewards, score
from cria.reward_data import encode
from cria.reward_training import go_on
from cria.sampling import generate
from cria.selection import Sample, rescored
from cria.sft import train_sft
from cria.tokenizer import Tokenizer
from cria.training import pick_dtype
from cria.world.prompts import Prompt

__all__ = ["Judges", "best_temperature", "fine_tune", "refresh", "rescore", "sample"]

CHUNK = 100  # prompts that are sampled, scored and kept on disk together
SAFETY = "harm"  # the kind of prompt that is tagged as one of safety

Judges = tuple[RewardModel, RewardModel]  # the helpfulness and the safety RM


def rewards(
    rms: Judges,
    vocabulary: Tokenizer,
    asked: Sequence[Prompt],
    answers: Sequence[Sequence[Sequence[int]]],
    gate: float,
) -> list[list[float]]:
    """R_c of every answer (ids) to every prompt: `reward.combine_rewards`."""
    prompts = [chat.prompt_ids(vocabulary, p.messages) for p in asked]
    helpful, safety = (score(rm, prompts, answers) for rm in rms)
    return [
        combine_rewards(
            torch.tensor(s), torch.tensor(h), torch.tensor(p.kind == SAFETY), gate
        ).tolist()
        for p, h, s in zip(asked, helpful, safety, strict=True)
    ]


def draw(
    model: Llama,
    vocabulary: Tokenizer,
    asked: Sequence[Prompt],
    config: RejectionConfig,
    temperature: float,
    seed: int,
) -> list[list[list[int]]]:
    """K answers to every prompt, as ids; the prompt is read once for all K."""
    drawn = generate(
        model,
        [chat.prompt_ids(vocabulary, p.messages) for p in asked],
        max_new_tokens=config.max_new_tokens,
        eos_id=vocabulary.eos_id,
        temperature=temperature,
        top_p=config.top_p,
        n=config.samples,
        seeds=seed,
        dtype=pick_dtype(config.dtype),
    ).lists()
    K = config.samples
    return [drawn[i * K : (i + 1) * K] for i in range(len(asked))]


def best_temperature(
    model: Llama,
    rms: Judges,
    vocabulary: Tokenizer,
    asked: Sequence[Prompt],
    config: RejectionConfig,
    *,
    gate: float,
    seed: int,
) -> tuple[float, dict[float, float]]:
    """The temperature whose best of K scores highest, and that score at each (Fig. 8).

    Measured anew every round: it moves as the model is trained.
    """
    curve = {}
    for temperature in config.temperatures:
        answers = draw(model, vocabulary, asked, config, temperature, seed)
        given = torch.tensor(rewards(rms, vocabulary, asked, answers, gate))
        curve[temperature] = float(given.max(1).values.mean())
    return max(curve, key=curve.get), curve


def sample(
    model: Llama,
    rms: Judges,
    vocabulary: Tokenizer,
    asked: Sequence[Prompt],
    config: RejectionConfig,
    *,
    round: int,
    temperature: float,
    gate: float,
    seed: int,
    out: Path | None = None,
) -> list[Sample]:
    """K scored answers to every prompt.

    With ``out``, every hundred prompts go into a file there as soon as they are
    scored, and a later call with the same arguments goes on behind them.
    """
    found: list[Sample] = []
    for i, start in enumerate(range(0, len(asked), CHUNK)):
        part = asked[start : start + CHUNK]
        path = out / f"samples-{i:03d}.json" if out else None
        if path is not None and path.exists():
            rows = json.loads(path.read_text("utf-8"))
        else:
            answers = draw(model, vocabulary, part, config, temperature, seed + i)
            rows = [answers, rewards(rms, vocabulary, part, answers, gate)]
            if path is not None:
                write_json(path, rows)
        found += [
            Sample(prompt, tuple(ids), round, value)
            for prompt, several, values in zip(part, *rows, strict=True)
            for ids, value in zip(several, values, strict=True)
        ]
    return found


def rescore(
    pool: Sequence[Sample], rms: Judges, vocabulary: Tokenizer, gate: float
) -> list[Sample]:
    """The pool under the newest reward models."""

    def newest(samples: Sequence[Sample]) -> list[float]:
        asked = [s.prompt for s in samples]
        given = rewards(rms, vocabulary, asked, [[s.ids] for s in samples], gate)
        return [values[0] for values in given]

    return rescored(pool, newest)


def fine_tune(
    model: Llama,
    vocabulary: Tokenizer,
    chosen: Sequence[Sample],
    config: RejectionConfig,
    *,
    seed: int,
    texts: Sequence[Sequence[int]] = (),
    out: Path | None = None,
    label: str = "fine-tuning",
    progress: bool = True,
) -> list[dict]:
    """Train ``model`` in place on the chosen answers, as in SFT; the metrics.

    texts: documents as ids that are read beside, every token counted: what few
    training prompts ask for would be forgotten otherwise.
    """
    docs = []
    for s in chosen:
        prompt = chat.prompt_ids(vocabulary, s.prompt.messages)
        mask = [False] * len(prompt) + [True] * len(s.ids)
        docs.append(([*prompt, *s.ids], mask))
    docs += [(ids, None) for ids in texts]
    rows = packing.pack(docs, config.seq_len)
    return train_sft(
        model, rows, config, seed=seed, out=out, label=label, progress=progress
    )


def refresh(
    rms: Judges,
    fresh: dict[str, Sequence[Comparison]],
    old: dict[str, Sequence[Comparison]],
    vocabulary: Tokenizer,
    config: RewardConfig,
    *,
    lr: float,
    seed: int,
    out: Path | None = None,
    progress: bool = True,
) -> None:
    """Both reward models, in place, learn from fresh comparisons and as many old ones.

    fresh, old: ground → comparisons.  lr: the peak.
    """
    config = replace(config, optim=replace(config.optim, lr=lr))
    for rm, ground in zip(rms, ("helpfulness", "safety"), strict=True):
        rng = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(old[ground]), generator=rng)[: len(fresh[ground])]
        mixed = [*fresh[ground], *(old[ground][i] for i in order)]
        go_on(
            rm,
            encode(vocabulary, mixed, config.margins[config.margin]),
            config,
            seed=seed,
            aux=config.safety_aux if ground == "safety" else 0.0,
            out=out / f"training_{ground}" if out else None,
            label=f"{ground} RM, refreshed",
            progress=progress,
        )


def gain_of_best(samples: Sequence[Sample], K: int) -> float:
    """Mean score of the best of K minus the mean score: what choosing adds."""
    scores = torch.tensor([s.score for s in samples]).view(-1, K)
    return float((expected_best(scores, scores, K) - scores.mean(1)).mean())
