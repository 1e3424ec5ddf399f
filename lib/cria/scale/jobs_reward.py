"""The two reward models on many processes (paper §3.2.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cria import reward, reward_data
from cria.config import Config
from cria.preference_files import Comparison
from cria.preference_files import load as load_comparisons
from cria.real_weights import weights
from cria.reward import RewardModel, ranking_loss
from cria.scale.job import Inputs, Job, check_vocabulary, empty, filled
from cria.scale.sharding import fill
from cria.training import LossFn

__all__ = ["reward_loss", "rm_helpful", "rm_safety", "with_safety_weights"]


def rm_helpful(config: Config, seed: int, inputs: Inputs) -> Job:
    """The helpfulness reward model (`cria.reward_training`)."""
    return _reward_model(config, seed, inputs, "helpfulness")


def rm_safety(config: Config, seed: int, inputs: Inputs) -> Job:
    """The safety reward model, with its auxiliary loss."""
    return _reward_model(config, seed, inputs, "safety")


def reward_loss(aux: float = 0.0, lm_loss: float = 0.0) -> LossFn:
    """`cria.reward_training.reward_loss`, as a mean over rows, so that it can be cut.

    The safety loss balances the safe and the unsafe answers of a whole batch; a part
    of the batch does not know them all, so each answer brings its weight along
    (`with_safety_weights`).
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
            sign = 2.0 * batch["safe"] - 1.0  # where it is −1, the weight is 0
            each = -F.logsigmoid(sign * scores) * batch["safety_weight"]
            loss = loss + aux * each.sum(1).mean()
        return loss, metrics

    return loss_fn


def with_safety_weights(batches: Callable[[int], dict]) -> Callable[[int], dict]:
    """Batches with "safety_weight" (B, 2): B ÷ (answers like this one · labels).

    So the mean over rows is the mean over the labels, safe and unsafe, of each label's
    mean: `cria.reward.safety_loss`.
    """

    def batch(step: int) -> dict[str, Tensor]:
        found = batches(step)
        safe = found["safe"]
        there = [(safe == label) for label in (1, 0) if (safe == label).any()]
        weight = torch.zeros(safe.shape)
        for mine in there:
            weight[mine] = len(safe) / (int(mine.sum()) * len(there))
        return found | {"safety_weight": weight}

    return batch


def _reward_model(config: Config, seed: int, inputs: Inputs, ground: str) -> Job:
    """From a chat model's weights, with a new head.

    data: comparisons in a .jsonl file (`cria.preference_files`).
    """
    c, start, notes = config.reward, weights(inputs.start), ()
    check_vocabulary(inputs.tokenizer, start.config)
    if inputs.data is None:
        found = reward_data.comparisons(inputs.comparisons)
        mixed: list[Comparison] = reward_data.mixes(found, c, seed)[ground]
    else:
        loaded = load_comparisons(inputs.data, ground)
        mixed = loaded.comparisons
        if len(mixed) < c.batch_size:
            raise ValueError(
                f"{loaded}. A batch takes {c.batch_size}: give more, or lower "
                "reward.batch_size."
            )
        notes = (str(loaded),) if loaded.problems else ()
    pairs = reward_data.encode(
        inputs.tokenizer, mixed, c.margins[c.margin], start.config.max_seq_len
    )
    own = ground in c.own_logprob

    def new() -> RewardModel:
        return RewardModel(
            empty(start.config),
            own_logprob=own,
            logprob_weight=c.logprob_weight,
            seed=seed,
        )

    beside = {
        name: p.detach().clone()
        for name, p in new().named_parameters()
        if not name.startswith("trunk.")
    }

    def get(name: str) -> Tensor:
        inner = name.removeprefix("trunk.")
        return beside[name] if inner == name else start.get(inner)

    def save(found: Mapping[str, Tensor], folder: Path) -> None:
        reward.save(filled(new(), found), folder, inputs.tokenizer)

    aux = c.safety_aux if ground == "safety" else 0.0
    batches = reward_data.batches(pairs, c.batch_size, seed)
    return Job(
        new(),
        lambda model: fill(model, get),
        with_safety_weights(batches) if aux > 0 else batches,
        reward_loss(aux, c.lm_loss if own else 0.0),
        c.optim,
        len(pairs) // c.batch_size * c.epochs,
        save,
        notes,
    )
