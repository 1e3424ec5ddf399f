"""Rows that hold one prompt and several answers to it, each blind to the others.

`branches` (B, T) says who is who: 0 the prompt, k ≥ 1 the k-th answer, −1 padding
(see `Llama.forward`). A prompt is then read once, however many answers there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = -1


@dataclass(frozen=True)
class Branched:
    """ids and branches, each (B, T) int64, padded on the right with branch −1."""

    ids: Tensor
    branches: Tensor


def branched(
    rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
) -> Branched:
    """(prompt ids, [answer ids, …]) a row → tensors as wide as the longest row.

    Raises ValueError for an empty prompt or answer: a score needs a token to stand on.
    """
    if not all(len(prompt) and answers and all(answers) for prompt, answers in rows):
        raise ValueError("A prompt or an answer has no tokens; leave that row out.")
    width = max(len(p) + sum(map(len, answers)) for p, answers in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    branches = torch.full((len(rows), width), PADDING)
    for i, (prompt, answers) in enumerate(rows):
        start = 0
        for k, part in enumerate((prompt, *answers)):
            end = start + len(part)
            ids[i, start:end] = torch.tensor(part)
            branches[i, start:end] = k
            start = end
    return Branched(ids, branches)


def last_tokens(branches: Tensor) -> Tensor:
    """Where each answer ends: (B, T) → (B, K), the column of answer k's last token.

    A row with fewer than K answers has 0 for those that it lacks.
    """
    at = branches.device
    answers = torch.arange(1, int(branches.max()) + 1, device=at)
    columns = torch.arange(branches.shape[1], device=at)
    mine = branches[:, None, :] == answers[:, None]  # (B, K, T)
    return torch.where(mine, columns, 0).amax(2)


def before(branches: Tensor) -> Tensor:
    """The column that each token is foretold from: (B, T) → (B, T).

    The one before it; for the first token of an answer, the end of the prompt.
    """
    columns = torch.arange(branches.shape[1], device=branches.device)
    columns = columns.expand_as(branches)
    first = torch.ones_like(branches, dtype=torch.bool)
    first[:, 1:] = branches[:, 1:] != branches[:, :-1]
    prompt_end = (branches == 0).sum(1, keepdim=True) - 1
    return torch.where(first, prompt_end, columns - 1).clamp(min=0)
