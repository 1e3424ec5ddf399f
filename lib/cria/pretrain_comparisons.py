"""Change one thing about pre-training and see what it does (paper §2.1, §2.2).

A question is a stage: its arms run side by side, one core each, and what came out of
them is kept. All arms of a question take equally many steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cria import pretrain, scaling, side_by_side

__all__ = ["MULTI_HEAD", "build_mixes", "build_sizes"]

MULTI_HEAD = "multi-head"  # the arm of `build_sizes` that is no size of its own


def build_mixes(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `pretrain_mixes`: one new network for each mix of the sources.

    {"up-sampled", "plain"} → what `pretrain.arm` returns.
    """
    c = config.comparisons
    arm = {
        "steps": c.mix_steps,
        "model_config": config.model,
        "config": config.pretrain,
        "tokenizer_path": upstream["tokenizer"].tokenizer().path,
        "seed": seed,
    }
    mixes = {"up-sampled": config.pretrain.mix, "plain": c.mix_plain}
    jobs = {name: {**arm, "mix": mix} for name, mix in mixes.items()}
    return side_by_side.run(pretrain.arm, jobs)


def build_sizes(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `pretrain_sizes`: the sizes of `config.scaling` on the same real English.

    {size, or "multi-head": the largest with a key-value head for every query head} →
    what `scaling.run_size` returns; "text": how much was read, and from how much.
    """
    text = scaling.real_text(config, seed)
    sizes = config.scaling.models
    shapes = {**sizes, MULTI_HEAD: scaling.multi_head(sizes["large"])}
    # The largest begin, so that no core is left with a long run at the end.
    jobs = {
        name: {"model": shape, "config": config.scaling, "text": text, "seed": seed}
        for name, shape in reversed(shapes.items())
    }
    return side_by_side.run(scaling.run_size, jobs) | {
        "text": {
            "train": text.train.size,
            "held_out": text.held_out.size,
            "characters_per_token": text.characters_per_token,
        }
    }
