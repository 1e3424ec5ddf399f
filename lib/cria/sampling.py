"""Sampling from a `Llama`: batched, with a KV cache, reproducible row by row."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cria.cache import KVCache
from cria.decoding import layer_weights, next_logits
from cria.model import Llama


@dataclass(frozen=True)
class Samples:
    """R sampled continuations, padded on the right to the longest (T tokens).

    ids (R, T) int64; mask (R, T) True on sampled tokens, EOS included; logprobs
    (R, T) of each token under the distribution it was drawn from (0 where masked);
    finished (R,) True where EOS was drawn before the tokens ran out.
    """

    ids: Tensor
    mask: Tensor
    logprobs: Tensor
    finished: Tensor

    def lists(self) -> list[list[int]]:
        """The sampled ids of each row, without padding (EOS included)."""
        return [row[m].tolist() for row, m in zip(self.ids, self.mask, strict=True)]


def sampling_probs(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities (R, V) after temperature, then nucleus (Holtzman et al. 2020).

    top_p keeps the smallest set of most probable tokens whose mass reaches top_p.
    """
    probs = (logits / temperature if temperature != 1 else logits).softmax(-1)
    if top_p < 1:
        ranked, order = probs.sort(-1, descending=True)
        ranked[ranked.cumsum(-1) - ranked >= top_p] = 0  # better tokens have the mass
        probs = torch.zeros_like(probs).scatter_(-1, order, ranked)
        probs /= probs.sum(-1, keepdim=True)
    return probs


def draw(probs: Tensor, u: Tensor) -> Tensor:
    """Inverse-CDF draw: probs (R, V), u (R,) uniform in [0, 1) → token ids (R,)."""
    cdf = probs.cumsum(-1)
    # Scaled by the float sum of the row, so that u < 1 never runs off its end.
    return torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)[:, 0]


@torch.inference_mode()
def generate(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    n: int = 1,
    seeds: Sequence[int] | int = 0,
    batch_rows: int = 256,
    dtype: torch.dtype = torch.float32,
) -> Samples:
    """Continue each prompt ``n`` times; row r·n + k is sample k of prompt r.

    temperature 0 is greedy (a point mass: its log-probs are 0). ``seeds``: one per
    row (len(prompts)·n), or one number from which row r gets seed·1_000_003 + r. A row
    depends on its own prompt and seed alone, not on its neighbours (up to rounding).
    A prompt is read once, however many samples it gets; rows that are done leave
    the batch. ``dtype`` bfloat16 samples from a bfloat16 copy of the model.
    """
    if n < 1:
        raise ValueError(f"generate needs n ≥ 1 samples a prompt; got {n}.")
    rows = len(prompts) * n
    if isinstance(seeds, int):
        seeds = [seeds * 1_000_003 + r for r in range(rows)]
    _check(model, prompts, max_new_tokens, temperature, top_p, rows, len(seeds))
    if dtype != torch.float32:
        model = copy.deepcopy(model).to(dtype)
    ids = torch.zeros(rows, max_new_tokens, dtype=torch.long)
    logprobs = torch.zeros(rows, max_new_tokens)
    # Prompts of like length share a batch: less padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    per_batch = max(1, batch_rows // n)
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        index = torch.tensor([i * n + k for i in chosen for k in range(n)])
        uniform = _uniform([seeds[i] for i in index], max_new_tokens)
        with _one_thread(len(index) == 1):
            ids[index], logprobs[index] = _continue(
                model,
                [prompts[i] for i in chosen],
                n,
                uniform,
                eos_id,
                temperature,
                top_p,
            )
    ended = ids == eos_id
    mask = ended.cumsum(1) - ended.long() == 0  # no EOS before
    width = int(mask.any(0).sum())
    ids, logprobs = ids.masked_fill(~mask, 0), logprobs.masked_fill(~mask, 0.0)
    return Samples(ids[:, :width], mask[:, :width], logprobs[:, :width], ended.any(1))


def _continue(model, prompts, n, uniform, eos_id, temperature, top_p):
    """One batch: ids and logprobs, each (rows, max_new_tokens).

    What stands behind a row's EOS means nothing.
    """
    rows, steps = uniform.shape
    longest = max(map(len, prompts))
    padding = torch.tensor([longest - len(p) for p in prompts])
    left_padded = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    cache = KVCache(model.config, padding, longest + steps, model.output.weight.dtype)
    last = model(left_padded, cache=cache, hidden=True)[:, -1]
    logits = model.output(last).float()
    if n > 1:
        repeated = torch.arange(len(prompts)).repeat_interleave(n)
        cache.select(repeated)
        logits = logits[repeated]
    layers = layer_weights(model)
    ids = torch.zeros(rows, steps, dtype=torch.long)
    logprobs = torch.zeros(rows, steps)
    alive = torch.arange(rows)  # the output row of each row still in the batch
    going = torch.ones(rows, dtype=torch.bool)  # … and whether it has not met EOS
    for t in range(steps):
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            probs = sampling_probs(logits, temperature, top_p)
            token = draw(probs, uniform[alive, t])
            logprobs[alive, t] = probs.gather(-1, token[:, None])[:, 0].log()
        ids[alive, t] = token
        going &= token != eos_id
        left = int(going.sum())
        if left == 0 or t + 1 == steps:
            break
        if left <= 0.75 * len(going):  # copying the cache costs: not for every row
            keep = going.nonzero()[:, 0]
            cache.select(keep)
            alive, token, going = alive[keep], token[keep], going[keep]
        logits = next_logits(model, layers, token, cache)
    return ids, logprobs


@contextlib.contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """A single row is too little work to share: waiting for each other costs more."""
    threads = torch.get_num_threads()
    try:
        if wanted:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def _uniform(seeds: Sequence[int], steps: int) -> Tensor:
    """(rows, steps) uniform numbers; each row from its own generator."""
    draws = [
        torch.rand(steps, generator=torch.Generator().manual_seed(s)) for s in seeds
    ]
    return torch.stack(draws)


def _check(model, prompts, max_new_tokens, temperature, top_p, rows, n_seeds):
    if not prompts or any(len(p) == 0 for p in prompts):
        raise ValueError("generate needs at least one prompt, and none may be empty.")
    if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(
            "generate needs max_new_tokens ≥ 1, temperature ≥ 0 and 0 < top_p ≤ 1; got "
            f"{max_new_tokens}, {temperature} and {top_p}."
        )
    if n_seeds != rows:
        raise ValueError(
            f"generate got {n_seeds} seeds for {rows} rows; give one each."
        )
    longest = max(map(len, prompts)) + max_new_tokens
    if longest > model.config.max_seq_len:
        raise ValueError(
            f"A prompt with max_new_tokens={max_new_tokens} comes to {longest} tokens, "
            f"more than the model's max_seq_len={model.config.max_seq_len}."
        )
