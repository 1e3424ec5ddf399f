"""The stage `ppo_v5`: PPO from the newest of V1 to V4 that none beats (§3.2.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from cria import checkpoints, packing, reward, world
from cria.config import Config, PPOConfig
from cria.model import Llama
from cria.ppo_rollout import Scorer, sampled
from cria.ppo_training import best_look, train_ppo
from cria.rejection import Judges, rewards
from cria.rejection_stage import GROUNDS
from cria.resume import CHECKPOINT
from cria.sft import gold
from cria.tokenizer import Tokenizer
from cria.training import Batch
from cria.world import World, corpora
from cria.world.prompts import Prompt, mixture

__all__ = ["asked", "best_start", "build", "judges", "scorer", "texts"]

GOLD_PROMPTS = 20  # a kind, at each look


def judges(stage) -> Judges:
    """The helpfulness and the safety RM as a round of rejection sampling left them."""
    return tuple(reward.load(stage.path / f"rm_{ground}") for ground in GROUNDS)


def scorer(rms: Judges, vocabulary: Tokenizer, gate: float) -> Scorer:
    """R_c of one answer a prompt, raw: `reward.combine_rewards`."""

    def score(
        prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
    ) -> list[float]:
        alone = [[ids] for ids in answers]
        given = rewards(rms, vocabulary, prompts, alone, gate)
        return [values[0] for values in given]

    return score


def asked(
    village: World, config: Config, n: int, seed: int
) -> Callable[[int], list[Prompt]]:
    """The n training prompts of each iteration."""
    c, first = config.ppo, (seed + 1) * 10_007
    return lambda i: mixture(village, c.wordings, n, dict(c.kinds), seed=first + i)


def texts(
    village: World, config: Config, vocabulary: Tokenizer, seed: int
) -> Callable[[int], Batch] | None:
    """Rows of truthful texts to read beside; None if they weigh nothing."""
    c, r = config.ppo, config.rejection
    if c.text_coef == 0:
        return None
    steps = c.iterations * c.epochs * (c.batch_size // c.minibatch_size)
    n_tokens = steps * c.text_rows * r.seq_len
    stream = corpora.stream(village, dict(r.text_mix), n_tokens, vocabulary, seed)
    rows = packing.pack([(ids, None) for ids in stream], r.seq_len)
    return packing.batches(rows, c.text_rows, seed)


def best_start(
    candidates: Mapping[str, Llama],
    score: Scorer,
    vocabulary: Tokenizer,
    dev: Sequence[Prompt],
    config: PPOConfig,
    seed: int,
) -> tuple[str, dict[str, float]]:
    """The newest candidate that no other beats on held-out prompts, and the win rates.

    candidates: oldest first. Each answers every prompt once. One *beats* another if it
    wins on more prompts than it loses, beyond chance (1.96 standard errors, in which a
    prompt that is asked several times counts as one). Only who wins counts, and not by
    how much: raw scores of two reward models have no common scale, and a mean would go
    by the larger one. If each is beaten by another, it is the newest.
    The win rate of each is that against the one that is taken (ties: half).
    """
    given = {}
    for name, model in candidates.items():
        _, answers, _ = sampled(model, vocabulary, dev, config, seed)
        given[name] = torch.tensor(score(dev, answers))
    places = {prompt.id: place for place, prompt in enumerate(dev)}
    groups = torch.tensor([places[prompt.id] for prompt in dev])

    def won(name: str, other: str) -> torch.Tensor:
        """1 for every prompt that is won, −1 for one that is lost, 0 for a tie."""
        return (given[name] - given[other]).sign()

    newest_first = list(reversed(given))
    unbeaten = [
        name
        for name in newest_first
        if not any(_beyond(won(other, name), groups) for other in given)
    ]
    taken = (unbeaten or newest_first)[0]
    rates = {name: 0.5 + float(won(name, taken).mean()) / 2 for name in given}
    return taken, rates


def _beyond(lead: torch.Tensor, groups: torch.Tensor) -> bool:
    """Is the mean of a lead more than chance gives, from one group to the next?"""
    sums = torch.zeros(len(lead)).index_add_(0, groups, lead - lead.mean())
    error = sums.square().sum().sqrt() / len(lead)
    return bool(lead.mean() > 1.96 * error)


def build(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `ppo_v5`: model/, and in its metrics every iteration and every look."""
    village, c = world.load(), config.ppo
    newest = upstream["v4"]
    vocabulary = newest.tokenizer()
    score = scorer(judges(newest), vocabulary, c.safety_gate)
    kinds = dict(c.kinds)
    dev = mixture(village, "dev", c.dev_prompts, kinds, seed)
    models = {name: stage.model() for name, stage in upstream.items()}
    start, wins = best_start(models, score, vocabulary, dev, c, seed)
    policy = models[start]

    def watch(policy: Llama) -> dict[str, float]:
        """The judge's view of each look, for the plots alone."""
        seen = gold(policy, vocabulary, village, per_kind=GOLD_PROMPTS, seed=seed)
        names = ("helpfulness", "safety", "false_refusals")
        return {f"gold_{name}": seen[name] for name in names}

    rows = train_ppo(
        policy,
        score,
        vocabulary,
        asked(village, config, c.batch_size, seed),
        dev,
        c,
        seed=seed,
        texts=texts(village, config, vocabulary, seed),
        watch=watch,
        out=out / "training",
        label="V5",
    )
    checkpoints.save(policy, out / "model", vocabulary)
    (out / "training" / CHECKPOINT).unlink()  # only a run that stopped needs it
    return {
        "start": start,
        "start_wins": wins,
        "rows": rows,
        "chosen": best_look(rows, c.kl_budget),
        "answers": c.batch_size * (len(rows) - 1),
    }
