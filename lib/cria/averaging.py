"""A running mean of weights: of the networks that one run of training passes through.

They began as one, so the way between them is short and the loss along it low (Wortsman
et al. 2022). Between networks that began apart, a mean would be nonsense.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["move_toward"]


@torch.no_grad()
def move_toward(model: nn.Module, other: nn.Module, share: float) -> None:
    """model ← (1 − share) · model + share · other, weight by weight, in place.

    0 leaves the model as it is, 1 makes it the other. Called after every step with a
    small share, it is a running mean of about the last 1/share networks (Polyak and
    Juditsky 1992). Raises ValueError for a share outside 0 to 1 and for networks whose
    weights have other names or shapes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"The share is {share}; it must lie between 0 and 1.")
    mine, others = dict(model.named_parameters()), dict(other.named_parameters())
    if {n: p.shape for n, p in mine.items()} != {n: p.shape for n, p in others.items()}:
        raise ValueError("Only networks of the same shape have a mean.")
    for name, weight in mine.items():
        weight.lerp_(others[name], share)
