"""More and more safety data beside the same helpful data (paper §4.2.3, Fig. 15).

As in the paper, every arm fine-tunes the pre-trained model for two epochs by the
recipe of SFT. The paper's samples are its RLHF models' own; ours are demonstrations
by experts, so that without safety data nobody has shown the model what a refusal is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cria import checkpoints, packing, side_by_side, world
from cria.config import SafetyConfig, SFTConfig
from cria.evaluate import SAFETY
from cria.safety_look import SafetyLook, as_lists
from cria.sft import documents, train_sft
from cria.tokenizer import Tokenizer
from cria.world import World
from cria.world.annotators import Demonstration, demonstrations
from cria.world.prompts import mixture

__all__ = ["arm", "build", "demonstrated", "harmless", "judges", "named", "part"]

EXPERTS = {"expert": 1.0}


def harmless(kinds: Mapping[str, float], without: Sequence[str] = ()) -> dict:
    """The mix of kinds without harm (and ``without`` others), summing to 1 again."""
    left = {k: v for k, v in kinds.items() if k not in (SAFETY, *without)}
    total = sum(left.values())
    return {kind: share / total for kind, share in left.items()}


def demonstrated(
    village: World, config: SafetyConfig, kinds: Mapping[str, float], seed: int
) -> tuple[list[Demonstration], list[Demonstration]]:
    """(helpful, safety): what experts answer to harmless prompts, in the mix of
    ``kinds``, and to training prompts that ask for harm."""
    written = []
    mixes = ((config.helpful, harmless(kinds)), (config.safety, {SAFETY: 1.0}))
    for i, (n, shares) in enumerate(mixes):
        key = 1000 * seed + 610 + i
        asked = mixture(village, "train", n, shares, key)
        written.append(demonstrations(village, asked, EXPERTS, n, key))
    return written[0], written[1]


def part(several: Sequence, share: float) -> list:
    """The first ``share`` of them, so that a smaller part lies within a larger."""
    return list(several[: round(share * len(several))])


def named(share: float) -> str:
    """An arm's name: 0.25 is "25 %"."""
    return f"{100 * share:g} %"


def judges(upstream: Mapping) -> tuple[Path, Path]:
    """Where the two reward models are that score the answers."""
    return tuple(upstream[f"rm_{x}"].path / "model" for x in ("helpful", "safety"))


def arm(
    base: Path,
    written: Sequence[Demonstration],
    config: SFTConfig,
    look: SafetyLook,
    rms: tuple[Path, Path],
    *,
    seed: int,
    keep: Path | None = None,
) -> dict:
    """The model in ``base`` fine-tuned on ``written``: the rows of `SafetyLook.at`.

    keep: a folder that the model goes into.
    """
    model = checkpoints.load(base)
    vocabulary = Tokenizer(base / "tokenizer.model")
    rows = packing.pack(
        documents(vocabulary, written, config.separator), config.seq_len
    )
    train_sft(model, rows, config, seed=seed, progress=False)
    if keep is not None:
        checkpoints.save(model, keep, vocabulary)
    return as_lists(look.at(model, vocabulary, rms))


def build(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `safety_scaling`: "samples" (name of the arm → its safety samples) and
    "arms" (name of the arm → what was seen). It holds the model of the first arm."""
    c = config.safety
    helpful, safety = demonstrated(world.load(), c, config.sft.kinds, seed)
    look = SafetyLook(
        c.gold_per_kind, c.gold_answers, seed, config.rejection.max_new_tokens
    )
    parts = {named(share): part(safety, share) for share in c.shares}
    jobs = {
        name: {
            "base": upstream["base"].path / "model",
            "written": [*helpful, *several],
            "config": config.sft,
            "look": look,
            "rms": judges(upstream),
            "seed": seed,
            "keep": out / "model" if i == 0 else None,
        }
        for i, (name, several) in enumerate(parts.items())
    }
    return {
        "helpful": len(helpful),
        "samples": {name: len(several) for name, several in parts.items()},
        "arms": side_by_side.run(arm, jobs),
    }
