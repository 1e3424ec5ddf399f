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

from cria import checkpoints, packing, pretrain, sft, world
from cria.config import Config, ModelConfig
from cria.model import Llama
from cria.real_weights import weights
from cria.scale.job import Inputs, Job, check_vocabulary, empty, filled
from cria.scale.jobs_reward import rm_helpful, rm_safety
from cria.scale.own_data import check_ids, dialogues, token_file
from cria.scale.sharding import fill, first_weights
from cria.training import lm_loss

__all__ = ["JOBS", "base", "sft_a"]


def base(config: Config, seed: int, inputs: Inputs) -> Job:
    """Pre-training (`cria.pretrain`).

    data: a .npy file of token ids (rows, seq_len), memory-mapped.
    """
    c = config.pretrain
    vocab_size = _shape(config, inputs).vocab_size
    if inputs.data is None:
        n = c.steps * c.batch_size
        rows = pretrain.world_rows(
            world.load(), inputs.tokenizer, c.mix, n, c.seq_len, seed
        )
    else:
        rows = token_file(inputs.data, vocab_size)
    everything = torch.ones(c.batch_size, rows.shape[1], dtype=torch.bool)

    def batch(step: int) -> dict[str, Tensor]:
        first = step * c.batch_size
        ids = np.array(rows[first : first + c.batch_size])  # out of the file
        check_ids(ids, vocab_size, f"{inputs.data}, from row {first} on,")
        return {"ids": torch.as_tensor(ids).long(), "loss_mask": everything}

    def loss_fn(model: Llama, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        return lm_loss(model(batch["ids"]), batch["ids"], batch["loss_mask"]), {}

    steps = min(c.steps, len(rows) // c.batch_size)
    if steps < 1:
        raise ValueError(
            f"{inputs.data} holds {len(rows)} rows, fewer than a batch of "
            f"{c.batch_size}: give more, or lower pretrain.batch_size."
        )
    notes = ()
    if steps < c.steps:
        notes = (f"{inputs.data} has rows for {steps} steps, not for {c.steps}.",)
        if steps <= c.optim.warmup_steps:
            raise ValueError(
                f"{notes[0]} The warm-up alone takes {c.optim.warmup_steps}: give "
                "more rows, or lower pretrain.optim.warmup_steps."
            )
    return _language_model(config, seed, inputs, batch, loss_fn, c.optim, steps, notes)


def sft_a(config: Config, seed: int, inputs: Inputs) -> Job:
    """Supervised fine-tuning (`cria.sft`, variant a).

    data: a .jsonl file, {"messages": [{"role": …, "content": …}, …]} a line.
    """
    c = config.sft
    # The released vocabulary of Llama 2 does not have the paper's separator.
    separator = c.separator and "<sep>" in inputs.tokenizer
    if inputs.data is None:
        written = sft.collect(world.load(), c, "a", seed)
        docs = sft.documents(inputs.tokenizer, written, separator)
    else:
        docs = dialogues(inputs.data, inputs.tokenizer, separator)
    lay = packing.pack if c.packing else packing.unpacked
    rows = lay(docs, c.seq_len)
    if not rows.loss_mask.any():
        raise ValueError(
            f"{inputs.data} has no assistant's answer within the first {c.seq_len} "
            "tokens of a dialogue: there is nothing to learn."
        )
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


def _shape(config: Config, inputs: Inputs) -> ModelConfig:
    return config.model if inputs.start is None else weights(inputs.start).config


def _language_model(
    config, seed, inputs, batches, loss_fn, optim, steps, notes=()
) -> Job:
    start = None if inputs.start is None else weights(inputs.start)
    shape = _shape(config, inputs)
    check_vocabulary(inputs.tokenizer, shape)

    def begin(model: nn.Module) -> None:
        if start is None:
            first_weights(model, seed)
        else:
            fill(model, start.get)

    def save(found: Mapping[str, Tensor], folder: Path) -> None:
        checkpoints.save(filled(empty(shape), found), folder, inputs.tokenizer)

    return Job(empty(shape), begin, batches, loss_fn, optim, steps, save, notes)
