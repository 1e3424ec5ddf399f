"""AdamW, the learning-rate schedule and gradient clipping (paper §2.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from cria.config import OptimConfig

__all__ = ["adamw", "clip_", "lr_at"]


def adamw(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over the parameters that are trained.

    Weight decay pulls matrices towards 0. Norm weights sit around 1 and biases have
    no scale to keep small, so one-dimensional parameters are spared.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("No parameter of this model has requires_grad=True.")
    groups = [
        {"params": [p for p in trained if p.ndim >= 2]},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.lr,
        betas=tuple(optim.betas),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        # One kernel for all tensors: 0.6 ms a step at 1M parameters and 39 tensors on
        # one core, against 2.4 ms (foreach) and 2.6 ms (a loop).
        fused=True,
    )


def lr_at(step: int, optim: OptimConfig, total_steps: int) -> float:
    """Learning rate of `step` (from 0) in a run of `total_steps`.

    A straight climb that reaches the peak at the end of the warm-up; then, for
    "cosine", half a cosine wave that reaches `min_lr_ratio` of the peak at the last
    step; "constant" stays at the peak.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"Step {step} is outside a run of {total_steps} steps.")
    done = step + 1  # counted from 1, so that the first step already learns
    warmup = optim.warmup(total_steps)
    if done <= warmup:
        return optim.lr * done / warmup
    if optim.schedule == "constant":
        return optim.lr
    progress = (done - warmup) / (total_steps - warmup)
    wave = 0.5 * (1 + math.cos(math.pi * progress))
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * wave)


def clip_(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Shrink the gradients in place to a joint norm of `max_norm`, if above.

    Returns the norm before clipping, which tells most about a run's health.
    """
    return float(nn.utils.clip_grad_norm_(parameters, max_norm))
