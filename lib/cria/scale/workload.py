"""What each stage trains on, reads and writes, in texts and tokens: from the config."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cria.config import Config, PreferencesConfig, RewardConfig
from cria.scale.paper import TABLE_6, TINY_WORLD, Lengths
from cria.world.annotators import GROUNDS  # a reward model each

Role = Literal["policy", "reward"]  # the language model, or a reward model


@dataclass(frozen=True)
class Texts:
    """So many texts of a mean length."""

    n: int = 0
    length: float = 0.0

    @property
    def tokens(self) -> int:
        return round(self.n * self.length)


@dataclass(frozen=True)
class Writing:
    """Answers that the language model samples."""

    prompts: int
    samples: int  # answers a prompt
    prompt: float  # tokens
    answer: float
    longest: int  # tokens of prompt and answer that the cache must hold
    at_once: int  # answers that could be written side by side

    @property
    def answers(self) -> int:
        return self.prompts * self.samples


@dataclass(frozen=True)
class Stage:
    """One stage of the recipe, whole: all steps, rounds and epochs."""

    name: str
    trains: Role
    steps: int
    rows: int  # that one step deals out to the GPUs
    row_tokens: int  # the longest row
    trained: Texts
    dtype: str
    ground: str = ""  # of a reward model that is trained
    read_by_policy: Texts = Texts()  # forward only
    judges: tuple[str, ...] = ()  # reward models, by their ground …
    read_by_judges: Texts = Texts()  # … each of which reads these
    writing: Writing | None = None
    together: bool = False  # sampler and judges share the GPUs with training
    frozen_policies: int = 0  # in memory beside the trained model


def lengths(config: Config) -> Lengths:
    """The paper's mean lengths, or the tiny world's where that is what is learnt."""
    return TINY_WORLD if config.tokenizer.whole_words else TABLE_6


def own_logprob(config: Config, ground: str) -> bool:
    """Does the reward model of that ground use its output matrix? Only where, tiny,
    it also weighs its own log-probabilities (`cria.reward`): not in the paper."""
    return ground in config.reward.own_logprob


def helpfulness_pairs(preferences: PreferencesConfig, reward: RewardConfig) -> int:
    """Comparisons of the helpfulness RM: all helpful ones ÷ (1 − other share), if
    there are so many (§3.2.2: as many again from safety and open source)."""
    helpful = preferences.pairs * (1 - preferences.safety_share)
    there = preferences.pairs + preferences.open_pairs
    kept = 1 - reward.helpfulness_other_share
    return min(round(helpful / kept), there) if kept else there


def safety_pairs(preferences: PreferencesConfig, reward: RewardConfig) -> int:
    """Comparisons of the safety RM: safety ones ÷ (1 − helpfulness share)."""
    safety = preferences.pairs * preferences.safety_share
    kept = 1 - reward.safety_helpfulness_share
    return min(round(safety / kept), preferences.pairs) if kept else preferences.pairs


def stages(config: Config) -> list[Stage]:
    """The stages that train a network, in the order of the paper."""
    return [
        _pretraining(config),
        _sft(config),
        _reward(config, "helpfulness", helpfulness_pairs),
        _reward(config, "safety", safety_pairs),
        _rejection(config),
        _ppo(config),
    ]


def _pretraining(config: Config) -> Stage:
    c = config.pretrain
    rows = Texts(c.steps * c.batch_size, c.seq_len)
    return Stage(
        "pre-training", "policy", c.steps, c.batch_size, c.seq_len, rows, c.dtype
    )


def _sft(config: Config) -> Stage:
    c, mean = config.sft, lengths(config)
    rows = c.demonstrations
    if c.packing:
        rows = _rows(c.demonstrations * (mean.prompt + mean.answer), c.seq_len)
    steps = math.ceil(rows * c.epochs / c.batch_size)
    texts = Texts(rows * c.epochs, c.seq_len)
    return Stage("SFT", "policy", steps, c.batch_size, c.seq_len, texts, c.dtype)


def _reward(config: Config, ground: str, count: Callable) -> Stage:
    c = config.reward
    pairs = count(config.preferences, c)
    steps = math.ceil(pairs * c.epochs / c.batch_size)
    texts = Texts(pairs * c.epochs, lengths(config).pair)
    return Stage(
        f"{ground} RM",
        "reward",
        steps,
        c.batch_size,
        config.sft.seq_len,
        texts,
        c.dtype,
        ground,
    )


def _rejection(config: Config) -> Stage:
    """K answers a prompt, both reward models read them all, the best are learnt from.

    With the pool of all rounds, round r learns from the best answers of r rounds.
    """
    c, mean = config.rejection, lengths(config)
    answered = mean.prompt + mean.answer
    n_rows = []
    for r in range(1, c.rounds + 1):
        best = c.prompts * (r if c.pool == "all" else 1)
        tokens = best * (answered + c.texts * mean.answer)  # texts: read beside
        n_rows.append(_rows(tokens, c.seq_len))
    asked = c.prompts * c.rounds
    return Stage(
        "rejection",
        "policy",
        sum(math.ceil(n * c.epochs / c.batch_size) for n in n_rows),
        c.batch_size,
        c.seq_len,
        Texts(sum(n_rows) * c.epochs, c.seq_len),
        c.dtype,
        judges=GROUNDS,
        read_by_judges=Texts(asked * c.samples, answered),
        writing=_writing(config, asked, c.samples, c.max_new_tokens, c.prompts),
    )


def _ppo(config: Config) -> Stage:
    """Each answer is read by the policy (log-probabilities and values), the frozen
    first policy and both reward models, and learnt from once. Ours: the critic is a
    head on the policy."""
    c, mean = config.ppo, lengths(config)
    n, answered = c.iterations * c.batch_size, mean.prompt + mean.answer
    return Stage(
        "PPO",
        "policy",
        n // c.minibatch_size,
        c.minibatch_size,
        config.sft.seq_len,
        Texts(n, answered),
        c.dtype,
        read_by_policy=Texts(2 * n, answered),
        judges=GROUNDS,
        read_by_judges=Texts(n, answered),
        writing=_writing(config, n, 1, c.max_new_tokens, c.batch_size),
        together=True,
        frozen_policies=1,
    )


def _writing(config: Config, prompts: int, k: int, most: int, together: int) -> Writing:
    mean = lengths(config)
    answer = min(mean.answer, most)
    longest = min(math.ceil(mean.prompt) + most, config.model.max_seq_len)
    return Writing(prompts, k, mean.prompt, answer, longest, together * k)


def _rows(tokens: float, seq_len: int) -> int:
    """Packed rows, as if all were full (ours are 98 % full)."""
    return math.ceil(tokens / seq_len)
