"""The questions of SFT as stages: who should write, how to pack, a separator or not?

All arms start from the base model and take equally many steps (`sft_comparisons.arm`);
the control of every question is `many`: packed rows of demonstrations by everyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cria import evaluate, packing, sft, sft_comparisons, side_by_side, world
from cria.packing import Rows
from cria.world.annotators import Demonstration, demonstrations
from cria.world.prompts import mixture

__all__ = ["build", "rows", "written"]


def written(config, seed: int) -> dict[str, list[Demonstration]]:
    """The demonstrations of the arms: "many" by everyone, "few" by experts.

    "unseen": by everyone again, on dev prompts, as many as the judge is shown.
    """
    village, c = world.load(), config.comparisons
    everyone = dict(config.sft.variants["a"].annotators)
    n_held_out = len(evaluate.held_out(village, "dev", _per_kind(config), seed))

    def by(styles: dict, n: int, split: str = "train") -> list[Demonstration]:
        asked = mixture(village, split, n, dict(config.sft.kinds), seed)
        return demonstrations(village, asked, styles, n, seed)

    return {
        "many": by(everyone, c.many_demonstrations),
        "few": by({"expert": 1.0}, c.few_demonstrations),
        "unseen": by(everyone, n_held_out, "dev"),
    }


def rows(config, vocabulary, several, *, separator=False, packed=True) -> Rows:
    """Demonstrations as rows of ids: packed, or one dialogue a row."""
    encoded = sft.documents(vocabulary, several, separator)
    lay = packing.pack if packed else packing.unpacked
    return lay(encoded, config.sft.seq_len)


def build(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `sft_questions`: {arm: what `sft_comparisons.arm` returns}.

    many, few: finding 4. alone: "many" with one dialogue a row, as many dialogues a
    step on average (finding 5). separator: "many" with <sep> before each answer.
    """
    c, base = config.sft, upstream["base"]
    vocabulary, texts = upstream["tokenizer"].tokenizer(), written(config, seed)
    many = rows(config, vocabulary, texts["many"])
    steps = packing.n_steps(many, c.batch_size, c.epochs)
    common = {
        "base": base.file("model.safetensors").parent,
        "held_out": rows(config, vocabulary, texts["unseen"]),
        "config": c,
        "steps": steps,
        "seed": seed,
        "per_kind": _per_kind(config),
        "samples": 2,
    }
    separated = {
        name: rows(config, vocabulary, texts[key], separator=True)
        for name, key in (("rows", "many"), ("held_out", "unseen"))
    }
    jobs = {
        "many": {**common, "rows": many},
        "few": {**common, "rows": rows(config, vocabulary, texts["few"])},
        "alone": {
            **common,
            "rows": rows(config, vocabulary, texts["many"], packed=False),
            "batch_size": batch_alone(config, many),
        },
        "separator": {**common, **separated, "separator": True},
    }
    return side_by_side.run(sft_comparisons.arm, jobs)


def batch_alone(config, packed: Rows) -> int:
    """Rows of one dialogue that hold as many dialogues as a batch of packed rows."""
    return round(config.sft.batch_size * packed.n_docs / len(packed))


def _per_kind(config) -> int:
    """Dev prompts of a kind that the judge is shown."""
    return config.evaluate.prompts // len(evaluate.BENIGN)
