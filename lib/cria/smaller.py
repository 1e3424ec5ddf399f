"""A smaller chat model, through the same recipe (paper §3.2.3).

Only the paper's 70B model samples; the smaller ones learn from its samples. This is
where ours comes from: the same texts, the same demonstrations, a smaller network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cria import checkpoints, packing, pretrain, sft, world
from cria.config import ModelConfig, OptimConfig
from cria.model import Llama
from cria.tokenizer import Tokenizer

__all__ = ["build", "grown", "quicker", "shape"]


def shape(config) -> tuple[ModelConfig, float]:
    """The small network, and how many times as fast it learns.

    config: with the sections model, pretrain, comparisons and rejection_comparisons,
    whose `small_model` says which of `comparisons.reward_models` it is.
    """
    small = config.comparisons.reward_models[config.rejection_comparisons.small_model]
    made = replace(
        config.model,
        dim=small.dim,
        n_layers=small.n_layers,
        n_heads=small.n_heads,
        n_kv_heads=small.n_kv_heads,
    )
    return made, small.lr / config.pretrain.optim.lr


def quicker(optim: OptimConfig, faster: float) -> OptimConfig:
    """The same schedule with a peak ``faster`` times as high."""
    return replace(optim, lr=optim.lr * faster)


def grown(
    model_config: ModelConfig,
    faster: float,
    config,
    vocabulary: Tokenizer,
    *,
    seed: int,
) -> Llama:
    """A chat model of another size, through `config`'s pre-training and SFT.

    config: with the sections pretrain and sft.
    """
    village, c = world.load(), config.pretrain
    n_rows = c.steps * c.batch_size
    rows = pretrain.world_rows(village, vocabulary, c.mix, n_rows, c.seq_len, seed)
    model, _ = pretrain.train_base(
        model_config,
        rows,
        c.batch_size,
        quicker(c.optim, faster),
        seed=seed,
        dtype=c.dtype,
        label="small model, pre-training",
    )
    c = replace(config.sft, optim=quicker(config.sft.optim, faster))
    written = sft.collect(village, c, "a", seed)
    lay = packing.pack if c.packing else packing.unpacked
    rows = lay(sft.documents(vocabulary, written, c.separator), c.seq_len)
    sft.train_sft(model, rows, c, seed=seed, label="small model, SFT")
    return model


def build(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `rs_small`: a small chat model, the one that will be taught."""
    vocabulary = upstream["sft_a"].tokenizer()
    made, faster = shape(config)
    model = grown(made, faster, config, vocabulary, seed=seed)
    checkpoints.save(model, out / "model", vocabulary)
    return {"weights": made.n_params}
