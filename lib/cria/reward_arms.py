"""One arm of a comparison of reward models: train it, measure it (paper §3.2.2).

All are functions of their arguments alone, so that `cria.side_by_side` can run two at
once. `cria.reward_comparisons` says which arms there are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from cria import checkpoints, smaller
from cria.config import ModelConfig, RewardConfig
from cria.model import Llama
from cria.preferences import Comparison
from cria.reward import RewardModel
from cria.reward_data import Pairs, batches, encode
from cria.reward_evaluate import accuracy, scored, unsafe_recall
from cria.reward_training import reward_loss
from cria.tokenizer import Tokenizer
from cria.training import train

__all__ = ["arm", "bimodality", "epochs", "fit", "grown", "measured"]

Test = Mapping[str, Sequence[Comparison]]  # ground → held-out comparisons


def fit(
    trunk: Llama,
    lessons: Sequence[Pairs],
    config: RewardConfig,
    *,
    seed: int,
    own_logprob: bool = False,
    aux: float = 0.0,
    epochs: int = 1,
    after_epoch: Callable[[RewardModel], None] | None = None,
) -> RewardModel:
    """A reward model from ``trunk``, changed in place, by one schedule over lessons.

    lessons: learnt one after the other; all of them together are an epoch. One with
    fewer pairs than a batch is a batch.
    after_epoch: a look at the model after every epoch; it must not change it.
    With one lesson the weights are those of `reward_training.train_reward_model`.
    """
    model = RewardModel(
        trunk, own_logprob=own_logprob, logprob_weight=config.logprob_weight, seed=seed
    )
    sizes = [min(config.batch_size, len(pairs)) for pairs in lessons]
    both = list(zip(lessons, sizes, strict=True))
    feeds = [batches(pairs, size, seed) for pairs, size in both]
    steps = [len(pairs) // size for pairs, size in both]
    per_epoch = sum(steps)

    def batch(step: int) -> dict[str, Tensor]:
        epoch, place = divmod(step, per_epoch)
        if after_epoch is not None and epoch and place == 0:
            after_epoch(model)
        for feed, n in zip(feeds, steps, strict=True):
            if place < n:
                return feed(epoch * n + place)
            place -= n
        raise AssertionError("a place beyond the epoch")

    lm_loss = config.lm_loss if own_logprob else 0.0
    train(
        model,
        batch,
        reward_loss(aux, lm_loss),
        config.optim,
        epochs * per_epoch,
        seed=seed,
        dtype=config.dtype,
        progress=False,
    )
    model.eval()
    if after_epoch is not None:
        after_epoch(model)
    return model


def measured(
    model: RewardModel, vocabulary: Tokenizer, test: Test, scores: bool = False
) -> dict[str, dict]:
    """What a reward model does on held-out comparisons, by ground.

    "accuracy" (by grade and "average") and "loss" (nats a pair, without a margin);
    on safety also "both_safe" (accuracy where both answers are safe, None without
    such pairs) and "unsafe" (`unsafe_recall`). scores: also "scores", of the chosen
    and then of the rejected answers, and their `bimodality`.
    """
    found = {}
    for ground, several in test.items():
        table = scored(model, vocabulary, several)
        row = {"accuracy": accuracy(table), "loss": float(table["loss"].mean())}
        if ground == "safety":
            calm = table[(table["safe_chosen"] == 1) & (table["safe_rejected"] == 1)]
            row["both_safe"] = float(calm["right"].mean()) if len(calm) else None
            row["unsafe"] = dict(unsafe_recall(table))
        if scores:
            given = pd.concat([table["r_chosen"], table["r_rejected"]]).tolist()
            row["scores"] = [round(x, 3) for x in given]
            row["bimodality"] = bimodality(given)
        found[ground] = row
    return found


def bimodality(scores: Sequence[float], bins: int = 10) -> float:
    """How deep the valley is between a heap of low and a heap of high scores: 0 to 1.

    As in Fig. 27 the scores are seen between 0 and 1, as σ(score − mean), in ``bins``
    bars. A bar's depth is 1 − its height ÷ the lower of the highest bars to its left
    and to its right; this is the largest. (Coefficients made of skewness and kurtosis
    take a single heap with a long tail, which is what ours often is, for two.)
    """
    values = torch.tensor(scores, dtype=torch.float64)
    bars = torch.histc((values - values.mean()).sigmoid(), bins, 0, 1)
    inner = range(1, bins - 1)
    shores = [torch.minimum(bars[:i].max(), bars[i + 1 :].max()) for i in inner]
    depths = [float(1 - bars[i] / s) for i, s in zip(inner, shores, strict=True) if s]
    return max([0.0, *depths])


def arm(
    trunk: Path,
    lessons: Sequence[Sequence[Comparison]],
    test: Test,
    config: RewardConfig,
    *,
    seed: int,
    own_logprob: bool = False,
    aux: float = 0.0,
    from_scratch: bool = False,
    scores: bool = False,
) -> dict:
    """Train a reward model from the model in the folder ``trunk``, and measure it.

    lessons: what it learns from, one after the other.  from_scratch: take a network
    of that shape with new weights.  Returns "pairs" and what `measured` returns.
    """
    model, vocabulary = checkpoints.load(trunk), Tokenizer(trunk / "tokenizer.model")
    if from_scratch:
        model = Llama(model.config, seed=seed)
    margin = config.margins[config.margin]
    made = fit(
        model,
        [encode(vocabulary, part, margin) for part in lessons],
        config,
        seed=seed,
        own_logprob=own_logprob,
        aux=aux,
    )
    pairs = sum(map(len, lessons))
    return {"pairs": pairs, **measured(made, vocabulary, test, scores)}


def epochs(
    trunk: Path,
    learnt: Sequence[Comparison],
    test: Sequence[Comparison],
    config: RewardConfig,
    *,
    n: int,
    seed: int,
    own_logprob: bool = False,
) -> list[dict]:
    """Read the same pairs ``n`` times; what it is worth after each of the n epochs.

    A row holds "training" and "held_out", each with loss and accuracy, measured alike:
    after the epoch, on all of the pairs, without a margin.
    """
    vocabulary = Tokenizer(trunk / "tokenizer.model")
    rows: list[dict] = []

    def look(model: RewardModel) -> None:
        row = measured(model, vocabulary, {"training": learnt, "held_out": test})
        rows.append(row)

    fit(
        checkpoints.load(trunk),
        [encode(vocabulary, learnt, config.margins[config.margin])],
        config,
        seed=seed,
        own_logprob=own_logprob,
        epochs=n,
        after_epoch=look,
    )
    return rows


def grown(
    model_config: ModelConfig,
    faster: float,
    config,
    vocabulary: Path,
    learnt: Mapping[str, Sequence[Comparison]],
    test: Test,
    *,
    seed: int,
    own_logprob: bool = False,
    chat: Path | None = None,
) -> dict:
    """A network of another size through the whole recipe, then its reward models.

    chat: the folder of its chat model; without one `smaller.grown` makes it, and here
    as there every learning rate is ``faster`` times as high. config: with the sections
    pretrain, sft and reward.

    Returns "weights" (their number) and "data": for each name in ``learnt`` what `arm`
    returns after those comparisons.
    """
    words = Tokenizer(vocabulary)
    if chat is None:
        given = (model_config, faster, config, words)
        trunk = smaller.grown(*given, seed=seed, progress=False)
    else:
        trunk = checkpoints.load(chat)
    c = config.reward
    c = replace(c, optim=smaller.quicker(c.optim, faster))
    data = {}
    for name, part in learnt.items():
        pairs = encode(words, part, c.margins[c.margin])
        made = fit(copy.deepcopy(trunk), [pairs], c, seed=seed, own_logprob=own_logprob)
        data[name] = {"pairs": len(part), **measured(made, words, test)}
    return {"weights": model_config.n_params, "data": data}
