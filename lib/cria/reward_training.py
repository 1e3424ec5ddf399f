"""Training a reward model (paper §3.2.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cria.config import RewardConfig
from cria.model import Llama
from cria.reward import RewardModel, ranking_loss, safety_loss, save, score
from cria.reward_data import Pairs, batches, comparisons, encode, mixes
from cria.training import train

__all__ = ["build", "center", "go_on", "reward_loss", "train_reward_model"]


def reward_loss(aux: float = 0.0, lm_loss: float = 0.0) -> Callable:
    """The loss of a batch for `training.train`: eq. (2) and what goes beside it.

    aux: weight of `safety_loss`.  lm_loss: weight of the mean −log p a token of the
    chosen answers, so that a network that judges by its own log-probabilities keeps
    foretelling answers.
    """

    def loss_fn(model: RewardModel, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        scores, logprobs = model.with_logprobs(
            batch["ids"], batch["branches"], wanted=lm_loss > 0
        )
        loss, metrics = ranking_loss(scores[:, 0], scores[:, 1], batch["margin"])
        metrics["ranking_loss"] = float(loss.detach())
        if lm_loss > 0:
            loss = loss - lm_loss * logprobs[:, 0].mean()
        if aux > 0:
            loss = loss + aux * safety_loss(scores, batch["safe"])
        return loss, metrics

    return loss_fn


def train_reward_model(
    trunk: Llama,
    pairs: Pairs,
    config: RewardConfig,
    *,
    seed: int,
    own_logprob: bool = False,
    aux: float = 0.0,
    steps: int | None = None,
    out: Path | None = None,
    label: str = "reward model",
    progress: bool = True,
) -> tuple[RewardModel, list[dict]]:
    """A reward model from ``trunk``, changed in place, and the metrics of its training.

    own_logprob: see `RewardModel`; it brings `config.lm_loss` with it.  aux: weight of
    `safety_loss`.  Without ``steps`` it sees the pairs `config.epochs` times.
    """
    model = RewardModel(
        trunk,
        own_logprob=own_logprob,
        logprob_weight=config.logprob_weight,
        seed=seed,
    )
    metrics = go_on(
        model,
        pairs,
        config,
        seed=seed,
        aux=aux,
        steps=steps,
        out=out,
        label=label,
        progress=progress,
    )
    return model, metrics


def go_on(
    model: RewardModel,
    pairs: Pairs,
    config: RewardConfig,
    *,
    seed: int,
    aux: float = 0.0,
    steps: int | None = None,
    out: Path | None = None,
    label: str = "reward model",
    progress: bool = True,
) -> list[dict]:
    """Train a reward model in place, new or not; the metrics. See above."""
    lm_loss = 0.0 if model.logprob_weight is None else config.lm_loss
    metrics = train(
        model,
        batches(pairs, config.batch_size, seed),
        reward_loss(aux, lm_loss),
        config.optim,
        steps or len(pairs) // config.batch_size * config.epochs,
        out=out,
        seed=seed,
        dtype=config.dtype,
        label=label,
        progress=progress,
    )
    model.eval()
    return metrics


def build(config, seed: int, upstream: Mapping, out: Path, ground: str) -> dict:
    """Stage `rm_helpful` or `rm_safety`: from the chat model, one epoch."""
    c, chat_model = config.reward, upstream["sft_a"]
    vocabulary, trunk = chat_model.tokenizer(), chat_model.model()
    mixed = mixes(comparisons(upstream["preferences"].path), c, seed)[ground]
    longest = trunk.config.max_seq_len
    pairs = encode(vocabulary, mixed, c.margins[c.margin], max_len=longest)
    model, metrics = train_reward_model(
        trunk,
        pairs,
        c,
        seed=seed,
        own_logprob=ground in c.own_logprob,
        aux=c.safety_aux if ground == "safety" else 0.0,
        out=out,
        label=f"{ground} RM",
    )
    if ground == "helpfulness":  # the safety RM's zero point means something already
        center(model, pairs)
    save(model, out / "model", vocabulary)
    (out / "training.safetensors").unlink()  # only a run that stopped needs it
    return {
        "pairs": len(pairs),
        "too_long": len(mixed) - len(pairs),
        "sources": dict(Counter(f"{c.source} {c.ground}" for c in mixed)),
        "loss": metrics[-1]["ranking_loss"],
        "accuracy": metrics[-1]["accuracy"],
        "seconds": metrics[-1]["seconds"],
    }


def center(model: RewardModel, pairs: Pairs, n: int = 512) -> float:
    """Shift the scores so that their mean over answers of ``pairs`` is 0; the shift.

    The first ``n`` pairs say where the mean is. No ranking changes. The zero of a
    ranking loss is arbitrary, and without a fixed one a plot of two reward models, or
    a weight on a reward, would mean nothing.
    """
    rows = pairs.rows[:n]
    given = score(model, [prompt for prompt, _ in rows], [both for _, both in rows])
    shift = -float(torch.tensor(given).mean())
    with torch.no_grad():
        model.head.bias += shift
    return shift
