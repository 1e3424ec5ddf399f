"""One new token a row: the sums of `Llama` in fewer and larger operations.

With one token a row, a CPU spends more time on starting an operation than on doing
it. `Llama` is written to be read and trained; this is the same network for the inner
loop of `cria.sampling`: weights looked up once, no modules called, cache and pad
mask cut once a token for all layers, residuals added by the matrix product itself.
Nothing is copied: the weights are the model's own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cria.cache import KVCache
from cria.model import Llama, apply_rope, rope_table


class Weights(NamedTuple):
    """Those of one layer; wo and w2 transposed, as `torch.addmm` takes them."""

    attention_norm: Tensor
    wq: Tensor
    wk: Tensor
    wv: Tensor
    wo: Tensor
    ffn_norm: Tensor
    w1: Tensor
    w3: Tensor
    w2: Tensor


def layer_weights(model: Llama) -> list[Weights]:
    """The weights of every layer, to be handed to `next_logits`."""
    return [
        Weights(
            layer.attention_norm.weight,
            layer.attention.wq.weight,
            layer.attention.wk.weight,
            layer.attention.wv.weight,
            layer.attention.wo.weight.t(),
            layer.ffn_norm.weight,
            layer.feed_forward.w1.weight,
            layer.feed_forward.w3.weight,
            layer.feed_forward.w2.weight.t(),
        )
        for layer in model.layers
    ]


def next_logits(
    model: Llama, layers: list[Weights], tokens: Tensor, cache: KVCache
) -> Tensor:
    """tokens (B,), one a row, behind ``cache`` → logits (B, V) float32.

    Equal to ``model(tokens[:, None], cache=cache)[:, 0]`` up to rounding, for
    inference only. The caller sees to it that the cache has room.
    """
    c, B, L = model.config, len(tokens), cache.length + 1
    H, K, E = c.n_heads, c.n_kv_heads, c.head_dim
    table = rope_table(E, c.max_seq_len, c.rope_theta)
    rotations = table[cache.length - cache.padding][:, None]  # (B, 1, E/2)
    new = cache.kv.select(4, cache.length).unbind(0)  # of each layer: (2, B, K, E)
    seen = cache.kv.narrow(4, 0, L).flatten(2, 3).unbind(0)  # … (2, B·K, L, E)
    bias = cache.bias.narrow(2, 0, L)

    h = model.tok_embeddings.weight[tokens]  # (B, D)
    for w, (k_new, v_new), (keys, values) in zip(layers, new, seen, strict=True):
        x = F.rms_norm(h, (c.dim,), w.attention_norm, c.norm_eps)
        q = apply_rope(F.linear(x, w.wq).view(B, 1, H, E), rotations)
        k = apply_rope(F.linear(x, w.wk).view(B, 1, K, E), rotations)
        k_new.copy_(k[:, 0])
        v_new.copy_(F.linear(x, w.wv).view(B, K, E))
        # The H/K query heads that share a key head are the rows of one matrix.
        q = q.view(B * K, H // K, E)
        scores = torch.baddbmm(bias, q, keys.mT, alpha=1 / math.sqrt(E))
        heads = torch.bmm(scores.softmax(-1), values)  # (B·K, H/K, E)
        h = torch.addmm(h, heads.view(B, c.dim), w.wo)
        x = F.rms_norm(h, (c.dim,), w.ffn_norm, c.norm_eps)
        h = torch.addmm(h, F.silu(F.linear(x, w.w1)).mul_(F.linear(x, w.w3)), w.w2)
    cache.length = L
    h = F.rms_norm(h, (c.dim,), model.norm.weight, c.norm_eps)
    return F.linear(h, model.output.weight).float()
