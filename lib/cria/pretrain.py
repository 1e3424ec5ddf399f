"""Pre-training (paper §2): the tokenizer, the mix of sources, the base model.

    python -m cria run 03        # the same, with pictures

A base model is a network that has learnt to continue text. What it believes depends
on what it has read how often: `token_rows` draws the sources by share of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cria import checkpoints, realtext, tokenizer, world
from cria.config import ModelConfig, OptimConfig, PretrainConfig
from cria.model import Llama
from cria.sampling import generate
from cria.tokenizer import Tokenizer
from cria.training import lm_loss, train
from cria.world import World, corpora, prompts

REAL_CHATS = 300  # beside the tiny world's own texts, so that any English is spelt


def build_tokenizer(config, seed: int, upstream: dict, out: Path) -> dict:
    """Stage `tokenizer`: the tiny world's vocabulary, one piece a word."""
    village = world.load()
    each = -(-config.tokenizer.documents // len(corpora.SOURCES))
    texts = [
        text
        for source in corpora.SOURCES
        for text in corpora.documents(village, source, each, seed)
    ]
    texts += realtext.chats(REAL_CHATS)
    words = village.words() if config.tokenizer.whole_words else ()
    made = tokenizer.train(
        texts, config.tokenizer.vocab_size, out / "tokenizer.model", whole_words=words
    )
    tokens = sum(len(made.encode(text)) for text in texts)
    return {
        "pieces": made.vocab_size,
        "whole_words": len(words),
        "characters_per_token": sum(map(len, texts)) / tokens,
    }


def token_rows(documents: Sequence[Sequence[int]], n_rows: int, seq_len: int) -> Tensor:
    """Documents end to end, cut into rows: (n_rows, seq_len) int64.

    As in Llama 2, a row is full of text, whatever documents it is cut from; BOS and
    EOS say where one ends. ValueError if the documents hold too few tokens.
    """
    flat = [token for document in documents for token in document]
    if len(flat) < n_rows * seq_len:
        raise ValueError(
            f"{len(flat)} tokens do not fill {n_rows} rows of {seq_len}: give more "
            "documents or ask for fewer steps."
        )
    return torch.tensor(flat[: n_rows * seq_len]).view(n_rows, seq_len)


def world_rows(
    village: World,
    vocabulary: Tokenizer,
    mix: dict[str, float],
    n_rows: int,
    seq_len: int,
    seed: int,
) -> Tensor:
    """The tiny world's sources by share of tokens, as rows for `train_base`."""
    # A few tokens more than needed: each source ends with a whole document.
    documents = corpora.stream(village, mix, n_rows * seq_len, vocabulary, seed)
    return token_rows(documents, n_rows, seq_len)


def train_base(
    model_config: ModelConfig,
    rows: Tensor,
    batch_size: int,
    optim: OptimConfig,
    *,
    seed: int,
    out: Path | None = None,
    dtype: str = "auto",
    label: str = "pre-training",
    progress: bool = True,
) -> tuple[Llama, list[dict]]:
    """A new network, trained once over ``rows`` in order: (model, metrics).

    Every token is predicted, and read once: an epoch, as in the paper.
    """
    model = Llama(model_config, seed=seed)
    everything = torch.ones(batch_size, rows.shape[1], dtype=torch.bool)

    def batch(step: int) -> dict[str, Tensor]:
        ids = rows[step * batch_size : (step + 1) * batch_size]
        return {"ids": ids, "loss_mask": everything}

    def loss_fn(model: Llama, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        return lm_loss(model(batch["ids"]), batch["ids"], batch["loss_mask"]), {}

    metrics = train(
        model,
        batch,
        loss_fn,
        optim,
        len(rows) // batch_size,
        out=out,
        seed=seed,
        dtype=dtype,
        label=label,
        progress=progress,
    )
    return model.eval(), metrics


@torch.inference_mode()
def held_out_loss(model: Llama, rows: Tensor, batch_size: int = 16) -> float:
    """Mean next-token loss in nats over rows (N, T) that were not trained on."""
    total = 0.0
    for ids in rows.split(batch_size):
        loss = lm_loss(model(ids), ids, torch.ones_like(ids, dtype=torch.bool))
        total += float(loss) * len(ids)
    return total / len(rows)


def fact_accuracy(model: Llama, vocabulary: Tokenizer, village: World) -> dict:
    """Ask for every fact in a wording never read; greedy answers.

    fact_accuracy: the share that is right; rumours_repeated: of the facts that gossip
    gets wrong, the share where the model tells the rumour.
    """
    probes = prompts.fact_probe(village)
    samples = generate(
        model,
        [vocabulary.encode(probe.question, bos=True) for probe in probes],
        max_new_tokens=14,
        eos_id=vocabulary.eos_id,
        temperature=0,
    )
    said = [vocabulary.decode(ids) for ids in samples.lists()]
    both = list(zip(probes, said, strict=True))
    gossip = [(p, text) for p, text in both if p.rumour is not None]
    return {
        "fact_accuracy": sum(p.right(text) for p, text in both) / len(both),
        "rumours_repeated": sum(p.repeats_rumour(t) for p, t in gossip) / len(gossip),
    }


def arm(
    mix: dict[str, float],
    steps: int,
    model_config: ModelConfig,
    config: PretrainConfig,
    tokenizer_path: Path,
    seed: int,
    progress: bool = False,
) -> dict:
    """One arm of the comparison of mixes: what a base model of ``mix`` knows."""
    village, vocabulary = world.load(), Tokenizer(tokenizer_path)
    n_rows = steps * config.batch_size
    rows = world_rows(village, vocabulary, mix, n_rows, config.seq_len, seed)
    model, metrics = train_base(
        model_config,
        rows,
        config.batch_size,
        config.optim,
        seed=seed,
        dtype=config.dtype,
        progress=progress,
    )
    return {
        **fact_accuracy(model, vocabulary, village),
        "loss": [(row["tokens"], row["loss"]) for row in metrics],
    }


def build(config, seed: int, upstream: dict, out: Path) -> dict:
    """Stage `base`: pre-train on the mix with up-sampled factual sources."""
    village, vocabulary = world.load(), upstream["tokenizer"].tokenizer()
    c = config.pretrain
    n_rows = c.steps * c.batch_size
    rows = world_rows(village, vocabulary, c.mix, n_rows, c.seq_len, seed)
    model, metrics = train_base(
        config.model,
        rows,
        c.batch_size,
        c.optim,
        seed=seed,
        out=out,
        dtype=c.dtype,
    )
    checkpoints.save(model, out / "model", vocabulary)
    (out / "training.safetensors").unlink()  # only a run that stopped needs it
    return {
        "loss": metrics[-1]["loss"],
        "tokens": metrics[-1]["tokens"],
        "seconds": metrics[-1]["seconds"],
        **fact_accuracy(model, vocabulary, village),
    }
