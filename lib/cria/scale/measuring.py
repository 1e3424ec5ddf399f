"""How long a step of training takes on this machine, to hold beside its FLOPs."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from cria.config import ModelConfig, OptimConfig
from cria.model import CHUNK, Llama
from cria.optim import adamw, clip_
from cria.scale.compute import train_flops
from cria.training import lm_loss, pick_dtype

__all__ = ["Step", "step"]


@dataclass(frozen=True)
class Step:
    """One step of training, measured."""

    parameters: int
    flops: float  # that the network takes: `compute.train_flops`
    seconds: float

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.seconds


def step(
    shape: ModelConfig,
    rows: int,
    seq_len: int,
    dtype: str = "float32",
    repeats: int = 5,
) -> Step:
    """The median of ``repeats`` steps on random tokens, after two to warm up."""
    model = Llama(shape, seed=0)
    optim = OptimConfig(lr=1e-4)
    optimizer = adamw(model, optim)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocab_size, (rows, seq_len), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    bf16 = pick_dtype(dtype) is torch.bfloat16
    seconds = []
    for _ in range(2 + repeats):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, bf16):
            loss = lm_loss(model(ids), ids, mask)
        loss.backward()
        clip_(model.parameters(), optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    flops = rows * train_flops(shape, seq_len, chunk=CHUNK)
    return Step(shape.n_params, flops, statistics.median(seconds[2:]))
