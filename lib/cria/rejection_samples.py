"""Scored samples of a model, for the comparisons beside V1 to V4 (paper §3.2.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cria import checkpoints, reward, world
from cria.rejection import sample
from cria.selection import Sample, best, write_pool
from cria.world.prompts import Prompt, mixture

__all__ = ["SAMPLES", "build", "judges", "sampled"]

SAMPLES = "samples.json"
GROUNDS = ("helpfulness", "safety")


def build(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `rs_samples`: K answers of the SFT model to every prompt, scored."""
    asked = mixture(
        world.load(),
        config.rejection.wordings[0],
        config.rejection_comparisons.prompts,
        dict(config.rejection.kinds),
        1000 * seed + 500,
        unique=True,
    )
    start = upstream["sft_a"].path / "model"
    found = sampled(config, seed, upstream, start, asked, 0, out)
    write_pool(found, out / SAMPLES)
    for part in out.glob("samples-*.json"):
        part.unlink()
    scores = [s.score for s in best(found)]
    return {
        "samples": len(found),
        "score": sum(s.score for s in found) / len(found),
        "score_of_best": sum(scores) / len(scores),
    }


def judges(upstream: Mapping, round: int) -> tuple[Path, Path]:
    """Where the two reward models at the end of a round are; 0: before the first."""
    if round == 0:
        return tuple(upstream[f"rm_{x}"].path / "model" for x in ("helpful", "safety"))
    return tuple(upstream[f"v{round}"].path / f"rm_{ground}" for ground in GROUNDS)


def sampled(
    config,
    seed: int,
    upstream: Mapping,
    folder: Path,
    asked: Sequence[Prompt],
    judged_by: int,
    out: Path | None = None,
) -> list[Sample]:
    """K answers of the model in ``folder``, scored by the reward models of a round."""
    return sample(
        checkpoints.load(folder),
        tuple(reward.load(path) for path in judges(upstream, judged_by)),
        upstream["sft_a"].tokenizer(),
        asked,
        config.rejection,
        round=1,
        temperature=config.rejection_comparisons.temperature,
        gate=config.ppo.safety_gate,
        seed=100 * (1000 * seed + 500),
        out=out,
    )
