"""A tiny world for PPO: a few prompts, one right word each, no tokenizer to train."""

from __future__ import annotations

from dataclasses import replace

from cria import config
from cria.config import ModelConfig, OptimConfig
from cria.world.prompts import Prompt

BOS, EOS = 1, 2
PROMPTS, FIRST_WORD, WORDS = 4, 8, 4  # prompts are tokens 3 …, words tokens 8 …
SHAPE = ModelConfig(
    dim=16, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=12, multiple_of=8,
    max_seq_len=32,
)  # fmt: skip
TOY = replace(
    config.load("smoke").ppo,
    batch_size=32,
    minibatch_size=16,
    epochs=2,
    iterations=4,
    optim=OptimConfig(lr=3e-3, schedule="constant"),
    gain_lr=3e-3,
    text_coef=0.0,
    max_new_tokens=6,
    dev_every=2,
    patience=99,
    average=0.0,
    kl_budget=1e9,
    dtype="float32",
)


class Vocabulary:
    """The two things that PPO asks of a tokenizer. "q3" is token 3, alone."""

    eos_id = EOS

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        [number] = [int(w[1:]) for w in text.split() if w[0] == "q"]
        # Prompts of unlike length, so that rows need padding.
        return [BOS] * bos + [3 + number] * (1 + number)


def question(number: int, split: str = "train") -> Prompt:
    return Prompt(f"{split}-{number}", "fact", split, (("user", f"q{number}"),))


def ask(n: int):
    """Every prompt as often, n of them an iteration."""
    return lambda i: [question(k % PROMPTS) for k in range(n)]


DEV = [question(k % PROMPTS, "dev") for k in range(16)]


def number_of(prompt: Prompt) -> int:
    return int(prompt.question[1:])


def right(prompt: Prompt) -> int:
    return FIRST_WORD + number_of(prompt)


def is_right(asked, answers) -> list[float]:
    """A reward model that knows: 1 for an answer that begins with the right word."""
    return [float(a[0] == right(p)) for p, a in zip(asked, answers, strict=True)]
