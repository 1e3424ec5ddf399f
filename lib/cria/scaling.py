"""Bigger networks on the same text (paper §2.2, Fig. 5), and what GQA costs.

    text = real_text(config, seed)
    run_size(config.scaling.models["tiny"], config.scaling, text, seed)

The tiny world is too small a subject to tell sizes apart: this is real English.
Every network reads the same rows in the same order, so that only the size differs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import torch

from cria import realtext, tokenizer
from cria.cache import KVCache
from cria.config import Config, ModelConfig, ScalingConfig
from cria.pretrain import held_out_loss, token_rows, train_base
from cria.tokenizer import Tokenizer

HELD_OUT_ROWS = 64
FIG_5 = {"7b": 1.74, "13b": 1.67, "34b": 1.57, "70b": 1.50}
"""The paper's final training losses, read off Fig. 5 by eye: no table prints them."""


@dataclass(frozen=True)
class RealText:
    """Real English as rows of ids, int64; arrays, because they go to other processes.

    train (steps · batch_size, seq_len); held_out (≤ 64, seq_len), from other chats.
    """

    train: np.ndarray
    held_out: np.ndarray
    characters_per_token: float


def real_text(config: Config, seed: int) -> RealText:
    """Real chats, cut by a vocabulary of their own, as many as `scaling` asks for.

    The seed decides which chats are read and in what order, but never which are
    held out. ValueError if the chats hold too few tokens for the steps asked for.
    """
    c = config.scaling
    train, held_out = realtext.split(realtext.chats(), c.validation_share)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = tokenizer.train(
            train[: config.tokenizer.real_documents],
            config.tokenizer.real_vocab_size,
            Path(folder) / "real.model",
            tags=False,
        )
    Random(f"real text {seed}").shuffle(train)
    documents = _encode(vocabulary, train, c.steps * c.batch_size * c.seq_len)
    kept = _encode(vocabulary, held_out, HELD_OUT_ROWS * c.seq_len)
    n_held_out = min(HELD_OUT_ROWS, sum(map(len, kept)) // c.seq_len)
    read = sum(map(len, documents))
    return RealText(
        token_rows(documents, c.steps * c.batch_size, c.seq_len).numpy(),
        token_rows(kept, n_held_out, c.seq_len).numpy(),
        sum(map(len, train[: len(documents)])) / read,
    )


def run_size(
    model: ModelConfig,
    config: ScalingConfig,
    text: RealText,
    seed: int,
    progress: bool = False,
) -> dict:
    """Train one network on `text` (a job for `side_by_side.run`).

    Returns n_params; loss, its curve as (tokens, nats) pairs; held_out, the loss on
    the chats never read; seconds.
    """
    network, metrics = train_base(
        model,
        torch.from_numpy(text.train),
        config.batch_size,
        config.optim,
        seed=seed,
        dtype=config.dtype,
        progress=progress,
    )
    return {
        "n_params": model.n_params,
        "loss": [(row["tokens"], row["loss"]) for row in metrics],
        "held_out": held_out_loss(network, torch.from_numpy(text.held_out)),
        "seconds": metrics[-1]["seconds"],
    }


def multi_head(model: ModelConfig) -> ModelConfig:
    """The same network with a key-value head for every query head.

    It has a few more weights. The paper evens that out with a wider feed-forward
    layer on the grouped side (A.2.1); we do not: at this size it is under 8 %.
    """
    return replace(model, n_kv_heads=model.n_heads)


def cache_bytes(model: ModelConfig) -> int:
    """Bytes that the keys and values of one text of full length take, as stored."""
    cache = KVCache(model, torch.zeros(1, dtype=torch.long), model.max_seq_len)
    return cache.kv.nbytes


def _encode(
    vocabulary: Tokenizer, texts: Iterable[str], n_tokens: int
) -> list[list[int]]:
    """BOS … EOS of as many texts as hold `n_tokens` tokens, or of all of them."""
    documents, found = [], 0
    for text in texts:
        if found >= n_tokens:
            break
        documents.append(vocabulary.encode(text, bos=True, eos=True))
        found += len(documents[-1])
    return documents
