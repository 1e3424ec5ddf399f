"""A smaller chat model, through the same recipe (paper §3.2.2, §3.2.3).

Only the paper's 70B model samples; the smaller ones learn from its samples. This is
where ours comes from: the same texts, the same demonstrations, a smaller network. The
question whether bigger reward models are better (Fig. 6) begins with such ones, too.
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


def shape(config, name: str) -> tuple[ModelConfig, float]:
    """The smaller network ``name`` of `comparisons.reward_models`, and how many times
    as fast it learns.

    config: with the sections model, pretrain and comparisons.
    """
    small = config.comparisons.reward_models[name]
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
    progress: bool = True,
) -> Llama:
    """A chat model of another size, through `config`'s pre-training and SFT.

    The text, its amount and the demonstrations are those of `config`'s own model, and
    so are the batches. Small networks bear larger steps: every learning rate is
    ``faster`` times as high.
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
        progress=progress,
    )
    c = replace(config.sft, optim=quicker(config.sft.optim, faster))
    written = sft.collect(village, c, "a", seed)
    lay = packing.pack if c.packing else packing.unpacked
    rows = lay(sft.documents(vocabulary, written, c.separator), c.seq_len)
    sft.train_sft(
        model, rows, c, seed=seed, label="small model, SFT", progress=progress
    )
    return model


def build(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `rs_small`: the chat model of `rejection_comparisons.small_model`, the one
    that will be taught."""
    vocabulary = upstream["sft_a"].tokenizer()
    made, faster = shape(config, config.rejection_comparisons.small_model)
    model = grown(made, faster, config, vocabulary, seed=seed)
    checkpoints.save(model, out / "model", vocabulary)
    return {"weights": made.n_params}
