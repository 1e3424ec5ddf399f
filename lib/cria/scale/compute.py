"""Work: floating-point operations, GPU hours, energy. One formula a function.

One multiplication and one addition count as two. N̂ = weights in matrices that a token
is multiplied with: all but the norms and the input embedding, which is a look-up.
"""

from __future__ import annotations

import math

from cria.config import ModelConfig
from cria.scale.memory import seen_pairs
from cria.scale.paper import KG_PER_KWH, PUE

MFU = 0.4
"""Ours: useful operations ÷ peak in training (Chowdhery et al. 2022: model FLOPs
utilisation). What is computed again under checkpointing counts as lost."""

MBU = 0.6
"""Ours: the share of the memory's bandwidth that writing token by token reaches."""


def matrix_weights(model: ModelConfig, output: bool = True) -> int:
    """N̂ = parameters − V·D − norms, and − V·D without the output matrix (a reward
    model needs none)."""
    norms = (2 * model.n_layers + 1) * model.dim
    ends = model.vocab_size * model.dim
    return model.n_params - norms - ends * (1 if output else 2)


def forward_flops(
    model: ModelConfig, T: float, output: bool = True, chunk: int = 1
) -> float:
    """Reading one text of T tokens: 2·N̂·T + 4·layers·D·pairs (Kaplan et al. 2020).

    pairs = T·(T + 1)/2, the keys that causal attention looks at; `chunk` as in
    `memory.seen_pairs`.
    """
    attention = 4 * model.n_layers * model.dim * seen_pairs(T, chunk)
    return 2 * matrix_weights(model, output) * T + attention


def train_flops(
    model: ModelConfig, T: float, output: bool = True, chunk: int = 1
) -> float:
    """Learning from one text: 3 · forward, as each product has two in its backward.
    About 6·N·T."""
    return 3 * forward_flops(model, T, output, chunk)


def recomputed_flops(model: ModelConfig, T: float, chunk: int = 1) -> float:
    """What activation checkpointing computes a second time: the blocks' forward."""
    return forward_flops(model, T, output=False, chunk=chunk)


def write_flops(model: ModelConfig, prompt: float, answer: float, k: int = 1) -> float:
    """K answers to one prompt, which is read once, with a cache of keys and values:
    forward(prompt) + K·[forward(prompt + answer) − forward(prompt)]."""
    before = forward_flops(model, prompt)
    return before + k * (forward_flops(model, prompt + answer) - before)


def write_bytes(
    weight_bytes: float,
    cache_a_token: float,
    prompt: float,
    answer: float,
    at_once: int,
) -> float:
    """Memory traffic of writing one answer: every token needs all weights, shared by
    the answers written at once, and the cache so far.

        answer · (weights / at_once + cache_a_token·(prompt + answer/2))
    """
    return answer * (weight_bytes / at_once + cache_a_token * (prompt + answer / 2))


def training_hours(flops: float, peak: float, mfu: float = MFU) -> float:
    """GPU hours = FLOPs ÷ (peak · MFU · 3600)."""
    return flops / (peak * mfu * 3600)


def writing_hours(
    flops: float, traffic: float, peak: float, bandwidth: float, mfu: float = MFU
) -> float:
    """GPU hours of sampling: the longer of computing and of reading memory,
    max(FLOPs ÷ (peak·MFU), bytes ÷ (bandwidth·MBU)) ÷ 3600."""
    return max(flops / (peak * mfu), traffic / (bandwidth * MBU)) / 3600


def implied_mfu(flops: float, gpu_hours: float, peak: float) -> float:
    """FLOPs ÷ (GPU hours · 3600 · peak): what somebody's GPU hours say they reached."""
    return flops / (gpu_hours * 3600 * peak)


def busy_gpus(rows: int, gpus: int) -> float:
    """GPUs that work on average when a step's rows are dealt out whole:
    rows ÷ ceil(rows ÷ GPUs). FSDP cuts weights, never a row."""
    return rows / math.ceil(rows / gpus)


def energy_mwh(gpu_hours: float, watts: float) -> float:
    """GPU hours · W ÷ 10⁶: the GPUs alone, at the most that they may draw."""
    return gpu_hours * watts / 1e6


def tonnes_co2eq(mwh: float) -> float:
    """MWh · PUE · kg/kWh, in tonnes (Llama 1, section 6)."""
    return mwh * PUE * KG_PER_KWH
