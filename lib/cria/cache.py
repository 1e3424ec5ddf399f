"""The keys and values that a `Llama` keeps, so that it reads each token only once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cria.config import ModelConfig


class KVCache:
    """Keys and values of every layer, for rows that are being continued.

    ``padding`` (B,) counts the pad tokens on the left of each row; ``length`` the
    columns filled so far. Memory: 2 · n_layers · B · n_kv_heads · max_len · head_dim
    numbers; with GQA n_kv_heads is n_heads / G: this is what it saves.

    kv: (layers, 2, B, K, max_len, E), the 2 for keys and values.
    bias: (B·K, 1, max_len), −∞ on the pads of a row and 0 elsewhere.
    """

    def __init__(
        self,
        config: ModelConfig,
        padding: Tensor,
        max_len: int,
        dtype: torch.dtype = torch.float32,
    ):
        B, K, device = len(padding), config.n_kv_heads, padding.device
        shape = (config.n_layers, 2, B, K, max_len, config.head_dim)
        self.kv = torch.zeros(shape, dtype=dtype, device=device)
        pads = torch.arange(max_len, device=device) < padding[:, None]
        bias = torch.zeros(pads.shape, dtype=dtype, device=device)
        bias = bias.masked_fill_(pads, -math.inf)
        self.bias = bias.repeat_interleave(K, 0)[:, None]
        self.padding = padding
        self.max_len = max_len
        self.length = 0

    def select(self, rows: Tensor) -> None:
        """Keep ``rows`` (indices, in that order; a row may be named many times)."""
        self.kv = self.kv[:, :, rows]
        self.bias = self.bias.unflatten(0, (len(self.padding), -1))[rows].flatten(0, 1)
        self.padding = self.padding[rows]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, T, E) behind what is there; return all L columns.

        The cache is for reading on, not for training: no gradient flows through it.
        ``length`` is for the caller to raise, after the last layer.
        """
        T = k.shape[2]
        keys, values = self.kv[layer, 0], self.kv[layer, 1]
        keys.narrow(2, self.length, T).copy_(k.detach())
        values.narrow(2, self.length, T).copy_(v.detach())
        L = self.length + T
        return keys.narrow(2, 0, L), values.narrow(2, 0, L)

    def positions_and_blocked(self, T: int) -> tuple[Tensor, Tensor]:
        """RoPE positions (B, T) and blocked keys (B, T, L) of the next T tokens."""
        columns = torch.arange(self.length + T, device=self.padding.device)
        new = columns[self.length :]
        pad = columns < self.padding[:, None]  # (B, L)
        # Pads see pads, so that no row of the softmax is empty.
        blocked = (columns > new[:, None]) | (
            pad[:, None] != pad[:, self.length :, None]
        )
        return (new - self.padding[:, None]).clamp_min(0), blocked
