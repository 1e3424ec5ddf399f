"""What the paper itself says full size cost: section 2.2.1, Table 2, section 3.2.3."""

from __future__ import annotations

from dataclasses import dataclass

TOKENS = 2.0e12  # of pre-training, all sizes
PPO_SECONDS = 330.0  # about, an iteration at 70B; on how many GPUs is not printed

PUE = 1.1
"""Power of the whole data centre ÷ power of its GPUs (Llama 1, section 6)."""

KG_PER_KWH = 0.385
"""Carbon of the average US kilowatt hour (Llama 1, section 6).

With `PUE` it gives every tonnage of Llama 2's Table 2 within 0.01 t, so that paper
must have counted in the same way, though it does not say so.
"""


@dataclass(frozen=True)
class Cost:
    """One row of Table 2: pre-training on A100-80GB."""

    gpu_hours: float
    watts: float  # a GPU
    tonnes: float  # tCO2eq


TABLE_2 = {  # by parameters, so that a file with the same network finds its row
    6_738_415_616: Cost(184_320, 400, 31.22),
    13_015_864_320: Cost(368_640, 400, 62.44),
    33_743_970_304: Cost(1_038_336, 350, 153.90),
    68_976_648_192: Cost(1_720_320, 400, 291.42),
}
LARGEST = max(TABLE_2)  # the one that samples for all sizes


@dataclass(frozen=True)
class Lengths:
    """Mean lengths in tokens, where a stage's data are not rows of fixed length."""

    prompt: float
    answer: float
    pair: float  # a comparison: what was said before, and two answers to it
    source: str


TABLE_6 = Lengths(
    prompt=31.4,
    answer=234.1,
    pair=595.7 + 216.9,  # an example of all sources, and its second answer
    source="Table 6 (prompts and answers of Meta's pairs; pairs of all sources)",
)
"""The paper prints these for preference data only; for SFT, rejection sampling and
PPO they are our stand-in."""

TINY_WORLD = Lengths(
    prompt=12.8, answer=13.0, pair=12.8 + 2 * 13.0, source="measured on our SFT data"
)
"""Measured: 1500 demonstrations of the course profile, its own tokenizer."""
