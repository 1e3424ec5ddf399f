"""Llama 2, top to bottom: RMSNorm, RoPE, grouped-query attention, SwiGLU, Llama.

Parameter names are those of Meta's released checkpoints, so that a Meta state
dict loads with ``strict=True``. Letters in shape comments: B rows, T tokens now,
L tokens that can be looked at (L = T without a cache), D = dim, H query heads,
K key/value heads, G = H/K query heads a group, E = head_dim, V vocabulary.
The cache of keys and values lives in `cria.cache`.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cria.cache import KVCache
from cria.config import ModelConfig

__all__ = [
    "Attention",
    "FeedForward",
    "KVCache",
    "Llama",
    "ModelConfig",
    "RMSNorm",
    "TransformerBlock",
    "apply_rope",
    "document_positions",
    "rope_table",
]

CHUNK = 128  # queries handled at once in `attend`: their scores fit a CPU's cache


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019; paper §2.2): no mean, no bias."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D). Statistics in float32 whatever the type of ``x``."""
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return x32.type_as(x) * self.weight.type_as(x)


@functools.lru_cache(maxsize=8)
def rope_table(head_dim: int, length: int, theta: float) -> Tensor:
    """Rotations e^(i·position·θ^(−2j/E)), complex64 (length, E/2) (RoFormer eq. 15)."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def apply_rope(x: Tensor, rotations: Tensor) -> Tensor:
    """Turn neighbouring pairs of ``x`` (B, T, heads, E) by ``rotations`` (B|1, T, E/2).

    Meta pairs neighbours (0,1), (2,3), …; Hugging Face pairs the halves (0,E/2), …:
    `cria.checkpoints` permutes wq and wk between the two.
    """
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    turned = torch.view_as_real(pairs * rotations[:, :, None])
    return turned.flatten(3).type_as(x)


def document_positions(doc_ids: Tensor) -> Tensor:
    """Position of each token in its document, from 0: (B, T) → (B, T).

    A document is a run of equal ids within a row.
    """
    index = torch.arange(doc_ids.shape[1], device=doc_ids.device).expand_as(doc_ids)
    new = F.pad(doc_ids[:, 1:] != doc_ids[:, :-1], (1, 0), value=True)
    return index - torch.where(new, index, 0).cummax(1).values


def as_bias(blocked: Tensor, dtype: torch.dtype) -> Tensor:
    """True → −∞, False → 0, with a place for the heads: (B, T, L) → (B, 1, T, L)."""
    bias = torch.zeros(blocked.shape, dtype=dtype, device=blocked.device)
    return bias.masked_fill_(blocked, -math.inf)[:, None]


def blocked_keys(ids: Tensor, doc_ids: Tensor | None) -> Tensor:
    """Which keys (dim 2) a query (dim 1) must not see: (B|1, T, T) bool.

    A token sees itself and what came before it in the same document.
    """
    T = ids.shape[1]
    blocked = torch.ones(1, T, T, dtype=torch.bool, device=ids.device).triu(1)
    if doc_ids is not None:
        blocked = blocked | (doc_ids[:, :, None] != doc_ids[:, None, :])
    return blocked


def branch_positions(branches: Tensor) -> Tensor:
    """Every answer goes on where the prompt (0) ends: (B, T) → (B, T)."""
    prompt = (branches == 0).sum(1, keepdim=True)
    return document_positions(branches) + prompt * (branches > 0)


def other_branches(branches: Tensor) -> Tensor:
    """Like `blocked_keys`, (B, T, T): a token sees the prompt and its own answer."""
    query, key = branches[:, :, None], branches[:, None, :]
    later = torch.ones_like(query * key, dtype=torch.bool).triu(1)
    return later | ((query != key) & (key != 0))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Causal grouped-query attention, a chunk of queries at a time.

    q (B, T, H, E); k, v (B, K, L, E); bias (B|1, 1, T, L) → (B, T, H, E).
    The T queries are the last T of the L positions.

    Plain matrix products over the keys that a chunk can see: about half of the full
    square, and in bfloat16 on a CPU faster than torch's fused kernel.
    The G queries that share a key head stand side by side in one matrix, so that no
    key or value is copied for each query head: this is what GQA saves.
    """
    B, T, H, E = q.shape
    K, L = k.shape[1:3]
    G = H // K
    q = (q / math.sqrt(E)).view(B, T, K, G, E).transpose(1, 2).reshape(B * K, T * G, E)
    k = k.transpose(2, 3).flatten(0, 1)  # (B·K, E, L)
    v = v.flatten(0, 1)  # (B·K, L, E)
    chunks = []
    for start in range(0, T, CHUNK):
        end = min(start + CHUNK, T)
        seen = L - T + end  # later keys are hidden from the whole chunk
        scores = torch.bmm(q[:, start * G : end * G], k[:, :, :seen])
        scores = scores.view(B, K, end - start, G, seen)
        scores += bias[:, :, start:end, None, :seen]
        weights = scores.softmax(-1).view(B * K, -1, seen)
        chunks.append(torch.bmm(weights, v[:, :seen]))
    out = torch.cat(chunks, 1) if len(chunks) > 1 else chunks[0]  # (B·K, T·G, E)
    return out.view(B, K, T, G, E).transpose(1, 2).reshape(B, T, H, E)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023; paper §2.2, appendix A.2.1)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        kv_dim = config.n_kv_heads * config.head_dim
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self,
        x: Tensor,
        rotations: Tensor,
        bias: Tensor,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q = apply_rope(self.wq(x).view(heads), rotations)  # (B, T, H, E)
        k = apply_rope(self.wk(x).view(heads), rotations).transpose(1, 2)
        v = self.wv(x).view(heads).transpose(1, 2)  # (B, K, T, E)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        # The softmax of bfloat16 scores stays in bfloat16: autocast would copy it.
        with torch.autocast(x.device.type, enabled=False):
            out = attend(q, k, v, bias)
        return self.wo(out.flatten(2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): w2(silu(w1·x) ⊙ w3·x)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_hidden, bias=False)
        self.w2 = nn.Linear(config.ffn_hidden, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerBlock(nn.Module):
    """Norm before each half, a residual around it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self,
        x: Tensor,
        rotations: Tensor,
        bias: Tensor,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotations, bias, cache, layer)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """The whole network. ``seed`` fixes the first weights (normal, std 0.02)."""

    def __init__(self, config: ModelConfig, seed: int | None = None):
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(
            TransformerBlock(config) for _ in range(config.n_layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if seed is not None:
            self.init_weights(seed)

    def init_weights(self, seed: int) -> None:
        """Normal(0, 0.02); what writes into the residual stream is scaled down with
        depth (GPT-2's rule; Llama 2's own is not printed)."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                into_residual = name.endswith(("wo.weight", "w2.weight"))
                std = 0.02 / math.sqrt(2 * len(self.layers)) if into_residual else 0.02
                nn.init.normal_(p, std=std, generator=generator)

    def forward(
        self,
        ids: Tensor,
        doc_ids: Tensor | None = None,
        cache: KVCache | None = None,
        hidden: bool = False,
        branches: Tensor | None = None,
    ) -> Tensor:
        """ids (B, T) int64 → logits (B, T, V) float32.

        doc_ids (B, T): a token sees earlier tokens of its own document only, and
            positions restart with each document; a negative id is padding. Packed
            rows, left padding and right padding are all said this way.
        cache: continue the rows it holds; it knows their padding, so that doc_ids
            beside it are a ValueError. No gradient flows through what it holds.
        hidden: return the normed last states (B, T, D), before the output matrix.
        branches (B, T), instead of doc_ids: 0 is a prompt that all see, k ≥ 1 the k-th
            of several answers to it, each as if the others were not there; −1 is
            padding. So two answers to compare need their prompt only once.
        """
        c, T = self.config, ids.shape[1]
        if sum(given is not None for given in (doc_ids, cache, branches)) > 1:
            raise ValueError(
                "Give doc_ids, branches or a cache, only one of them: each says by "
                "itself who sees whom."
            )
        past = cache.length if cache is not None else 0
        if past + T > c.max_seq_len:
            raise ValueError(
                f"{past + T} tokens do not fit max_seq_len={c.max_seq_len}: "
                "shorten the input or raise max_seq_len in the model's config."
            )
        h = self.tok_embeddings(ids)  # (B, T, D)
        if torch.is_autocast_enabled(h.device.type):
            h = h.to(torch.get_autocast_dtype(h.device.type))
        if cache is not None:
            positions, blocked = cache.positions_and_blocked(T)
        elif branches is not None:
            positions, blocked = branch_positions(branches), other_branches(branches)
        else:
            blocked = blocked_keys(ids, doc_ids)
            one_document = torch.zeros_like(ids[:1])
            positions = document_positions(one_document if doc_ids is None else doc_ids)
        bias = as_bias(blocked, h.dtype)
        rotations = rope_table(c.head_dim, c.max_seq_len, c.rope_theta).to(h.device)
        rotations = rotations[positions]  # (B|1, T, E/2)
        for i, layer in enumerate(self.layers):
            h = layer(h, rotations, bias, cache, i)
        if cache is not None:
            cache.length += T
        h = self.norm(h)
        return h if hidden else self.output(h).float()
