"""Bytes: what a network, its training and its cache take. One formula a function.

Letters as in `cria.model`: D = dim, F = feed-forward width, H query heads, K key/value
heads, E = head_dim, V vocabulary, T tokens in a row; b = bytes of a number in the
matrix products (2 for bfloat16, 4 for float32).
"""

from __future__ import annotations

import torch

from cria.config import ModelConfig
from cria.model import CHUNK, Llama

WEIGHT, GRADIENT, ADAM = 4, 4, 8
"""Bytes a parameter while training: float32 weight, float32 gradient, and AdamW's two
float32 moments. 16 in all; the bfloat16 copy exists only where it is gathered."""


def width(dtype: str) -> int:
    """b: bytes of a number. "auto" is bfloat16, which every GPU of the table has."""
    return {"float32": 4}.get(dtype, 2)


def count_parameters(model: ModelConfig) -> int:
    """Parameters, counted on torch's meta device: shapes without any memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in Llama(model).parameters())


def reward_parameters(model: ModelConfig, own_logprob: bool = False) -> int:
    """A reward model: the whole network, a head of D + 1, and for tiny models one
    weight of its own log-probability (`cria.reward`)."""
    return model.n_params + model.dim + 1 + own_logprob


def block_parameters(model: ModelConfig) -> int:
    """Parameters of one transformer block: (all − 2·V·D − D) ÷ layers."""
    ends = 2 * model.vocab_size * model.dim + model.dim
    return (model.n_params - ends) // model.n_layers


def sharded_bytes(parameters: int, bytes_each: float, gpus: int) -> float:
    """parameters · bytes_each ÷ GPUs: FSDP with full shard (ZeRO-3; Zhao et al. 2023,
    Rajbhandari et al. 2020) gives every GPU an equal slice."""
    return parameters * bytes_each / gpus


def gathered_bytes(model: ModelConfig, b: int) -> int:
    """What FSDP holds whole for a moment, whatever the number of GPUs (ours).

        block·(2b + b + 4) + 2·V·D·(b + b)

    Two blocks of weights (the next is fetched while one computes), the gradient of
    one in b and in the float32 it is summed in; both embeddings and their gradients,
    which belong to the root and stay whole.
    """
    ends = 2 * model.vocab_size * model.dim
    return block_parameters(model) * (3 * b + 4) + 2 * b * ends


def seen_pairs(T: int | float, chunk: int = 1) -> float:
    """Pairs of a query and a key it is multiplied with, in a causal row of T tokens.

    chunk = 1: T·(T + 1)/2, the pairs that matter. Queries are handled `chunk` at a
    time, each with all keys up to the chunk's end (`cria.model.attend`): a few more.
    """
    if chunk == 1:
        return T * (T + 1) / 2
    whole, rest = divmod(T, chunk)
    return chunk * chunk * whole * (whole + 1) / 2 + rest * T


def block_activations(model: ModelConfig, T: int, b: int) -> float:
    """Bytes that autograd keeps of one block for one row of T tokens.

        T·[2·(D·(4 + 2b) + 4) + b·(2·D + 2·K·E + 4·F)] + b·H·pairs

    Each RMSNorm: its input in float32, that normed, that times the weight, and one
    root a token. Attention: q, k, v and what enters wo; the softmax weights of every
    head (a fused kernel would not keep those). SwiGLU: w1·x, silu of it, w3·x, product.
    Counted in our own model; the like of Korthikanti et al. 2022, eq. 1, for Llama.
    """
    D, kv = model.dim, model.n_kv_heads * model.head_dim
    norms = 2 * (D * (4 + 2 * b) + 4)
    matrices = b * (2 * D + 2 * kv + 4 * model.ffn_hidden)
    scores = b * model.n_heads * seen_pairs(T, CHUNK)
    return T * (norms + matrices) + scores


def end_activations(model: ModelConfig, T: int, b: int, output: bool = True) -> float:
    """Bytes that autograd keeps outside the blocks, for one row.

        T·[8 + 4·E + D·(4 + 2b) + 4] + T·(4·V + 8), the last for a language model only

    Ids, rotations, the last norm; log-probabilities in float32 and the targets.
    """
    ends = 8 + 4 * model.head_dim + model.dim * (4 + 2 * b) + 4
    return T * (ends + output * (4 * model.vocab_size + 8))


def activation_bytes(
    model: ModelConfig, T: int, b: int, checkpointed: bool, output: bool = True
) -> float:
    """Activations of one row of T tokens on one GPU.

    Plain: layers · block + ends. With activation checkpointing (Chen et al. 2016) only
    each block's input stays, T·D·b, and the mask that all share, T·T·b; one block at
    a time is computed again: layers·T·D·b + T·T·b + block + ends.
    """
    block, ends = block_activations(model, T, b), end_activations(model, T, b, output)
    if checkpointed:
        inputs = model.n_layers * T * model.dim * b + T * T * b
        return inputs + block + ends
    return model.n_layers * block + ends


def cache_bytes(model: ModelConfig, tokens: int, b: int, gqa: bool = True) -> int:
    """Keys and values of one text: 2 · layers · K · E · tokens · b.

    Without grouped-query attention every query head has its own: H for K.
    """
    heads = model.n_kv_heads if gqa else model.n_heads
    return 2 * model.n_layers * heads * model.head_dim * tokens * b
