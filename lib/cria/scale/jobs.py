"""The stages that can be trained on many processes.

    job = JOBS["base"](config, seed=0, inputs=Inputs(tokenizer))

Each is the stage of the same name, in other words: with dtype float32 its losses and
weights are those of one process. Data are the tiny world's, or files of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cria import chat, checkpoints, packing, pretrain, sft, world
from cria.config import Config
from cria.model import Llama
from cria.real_weights import weights
from cria.scale.job import Inputs, Job, empty, filled
from cria.scale.jobs_reward import rm_helpful, rm_safety
from cria.scale.own_data import jsonl, token_file
from cria.scale.sharding import fill, first_weights
from cria.training import lm_loss

__all__ = ["JOBS", "base", "sft_a"]


def base(config: Config, seed: int, inputs: Inputs) -> Job:
    """Pre-training (`cria.pretrain`).

    data: a .npy file of token ids (rows, seq_len), memory-mapped.
    """
    c = config.pretrain
    if inputs.data is None:
        n = c.steps * c.batch_size
        rows = pretrain.world_rows(
            world.load(), inputs.tokenizer, c.mix, n, c.seq_len, seed
        )
    else:
        rows = token_file(inputs.data, config.model.vocab_size)
    everything = torch.ones(c.batch_size, rows.shape[1], dtype=torch.bool)

    def batch(step: int) -> dict[str, Tensor]:
        ids = rows[step * c.batch_size : (step + 1) * c.batch_size]
        return {"ids": torch.as_tensor(np.asarray(ids)).long(), "loss_mask": everything}

    def loss_fn(model: Llama, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        return lm_loss(model(batch["ids"]), batch["ids"], batch["loss_mask"]), {}

    steps = min(c.steps, len(rows) // c.batch_size)
    if steps < 1:
        raise ValueError(
            f"{inputs.data} holds {len(rows)} rows, fewer than a batch of "
            f"{c.batch_size}: give more, or lower pretrain.batch_size."
        )
    return _language_model(config, seed, inputs, batch, loss_fn, c.optim, steps)


def sft_a(config: Config, seed: int, inputs: Inputs) -> Job:
    """Supervised fine-tuning (`cria.sft`, variant a).

    data: a .jsonl file, {"messages": [{"role": …, "content": …}, …]} a line.
    """
    c = config.sft
    if inputs.data is None:
        written = sft.collect(world.load(), c, "a", seed)
        docs = sft.documents(inputs.tokenizer, written, c.separator)
    else:
        docs = [
            chat.encode_dialog(inputs.tokenizer, line["messages"], c.separator)
            for line in jsonl(inputs.data, "messages")
        ]
    lay = packing.pack if c.packing else packing.unpacked
    rows = lay(docs, c.seq_len)
    return _language_model(
        config,
        seed,
        inputs,
        packing.batches(rows, c.batch_size, seed),
        sft.sft_loss,
        c.optim,
        packing.n_steps(rows, c.batch_size, c.epochs),
    )


JOBS: dict[str, Callable[[Config, int, Inputs], Job]] = {
    "base": base,
    "sft_a": sft_a,
    "rm_helpful": rm_helpful,
    "rm_safety": rm_safety,
}


def _language_model(config, seed, inputs, batches, loss_fn, optim, steps) -> Job:
    start = None if inputs.start is None else weights(inputs.start)
    shape = config.model if start is None else start.config

    def begin(model: nn.Module) -> None:
        if start is None:
            first_weights(model, seed)
        else:
            fill(model, start.get)

    def save(found: Mapping[str, Tensor], folder: Path) -> None:
        checkpoints.save(filled(empty(shape), found), folder, inputs.tokenizer)

    return Job(empty(shape), begin, batches, loss_fn, optim, steps, save)
