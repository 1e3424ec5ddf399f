"""Does the model still obey at turn 20, and what did that cost (Table 30, §3.3)?

Every arm answers the same held-out dialogues, its own answers standing in them. The
questions are of the test split; the values of an instruction are either known from
training, in combinations that are not, or were never trained on at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from cria import checkpoints, side_by_side, world
from cria.evaluate import held_out
from cria.ghost import Lists, instructions
from cria.ghost_dialogues import Plan, always_first, answer_turns, plans
from cria.ghost_lists import held_out_lists
from cria.ghost_stage import read_lists
from cria.judged import as_columns, gold, judged, unwrapped
from cria.model import Llama
from cria.provenance import write_json
from cria.tokenizer import Tokenizer
from cria.world import World
from cria.world.instructions import KINDS, Instruction, instruct, obeys, text
from cria.world.judge import judge

__all__ = ["ARMS", "build_obedience", "build_price", "by_turn", "ghost_evaluate"]
__all__ += ["held_out_plans", "read_price", "read_turns"]

TRAINED, HELD_OUT, PLAIN = "trained", "held out", "plain"  # values in the dialogues
ARMS = {  # name: the stage, is the instruction told every turn, in which dialogues
    "no GAtt": ("ghost_base", False, (TRAINED, HELD_OUT, PLAIN)),
    "GAtt": ("ghost", False, (TRAINED, HELD_OUT, PLAIN)),
    "told every turn": ("ghost_base", True, (TRAINED,)),
    "loss on all turns": ("ghost_all", False, (TRAINED,)),
    "no best of K": ("ghost_raw", False, (TRAINED,)),
}
SAMPLES = 8  # answers a prompt, when the price is measured


def held_out_plans(
    village: World,
    lists: Lists,
    values: str,
    n: int,
    turns: int,
    *,
    split: str = "test",
    seed: int = 0,
) -> list[Plan]:
    """``n`` dialogues of ``turns`` turns for each kind of instruction.

    values: "trained", in combinations that are not; "held out", never trained on; or
    "plain", without instructions. A language alone cannot be held out.
    """
    wishes: list[Instruction | None] = [None] * n
    if values != PLAIN:
        held = values == HELD_OUT
        chosen = held_out_lists(village) if held else lists
        kinds = [kind for kind in KINDS if not (held and kind == "language")]
        wishes = [
            wish
            for kind in kinds
            for wish in instructions(chosen, n, seed=seed, kind=kind, aside=not held)
        ]
    return plans(village, split, wishes, (turns, turns), seed)


def ghost_evaluate(
    model: Llama,
    vocabulary: Tokenizer,
    village: World,
    planned: Sequence[Plan],
    *,
    every_turn: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a turn of each dialogue, answered greedily, the model's own answers
    standing in it.

    Columns: dialogue, kind, wish, turn (from 1), question, answer, obeys (0 or 1; in a
    plain dialogue 1 where the content is right) and content (how right, 0 to 1).
    """
    talks = answer_turns(
        model, vocabulary, village, planned, always_first, every_turn=every_turn,
        seed=seed,
    )  # fmt: skip
    rows = []
    for i, (plan, talk) in enumerate(zip(planned, talks, strict=True)):
        wish = plan.instruction
        # A dialogue that outgrew the context has no more answers: none of them obeys.
        answers = [*talk.answers, *[""] * (len(plan.prompts) - len(talk.answers))]
        told = zip(plan.prompts, answers, strict=True)
        for turn, (prompt, said) in enumerate(told, 1):
            asked = instruct(village, wish, prompt) if wish else prompt
            content = judge(village, asked, said).content
            obeyed = obeys(village, wish, prompt, said) if wish else content == 1
            rows.append(
                {
                    "dialogue": i,
                    "kind": wish.kind if wish else PLAIN,
                    "wish": text(village, wish) if wish else "",
                    "turn": turn,
                    "question": prompt.question,
                    "answer": said,
                    "obeys": float(obeyed),
                    "content": content,
                }
            )
    return pd.DataFrame(rows)


def by_turn(table: pd.DataFrame) -> dict[str, list[float]]:
    """The share that obeys at turns 1, 2, …: by kind, and for "all" of them."""
    pivot = table.pivot_table("obeys", "turn", "kind")
    return {kind: pivot[kind].tolist() for kind in pivot} | {
        "all": table.groupby("turn")["obeys"].mean().tolist()
    }


def build_obedience(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `ghost_obedience`: turns.json, and shares by arm, values, kind and turn."""
    base = upstream["ghost_base"]
    jobs = {
        f"{arm} | {values}": {
            "model": _folder(upstream[stage]),
            "lists": read_lists(base.path),
            "values": values,
            "every_turn": every_turn,
            "n": config.ghost.test_dialogues,
            "turns": max(config.ghost.test_turns),
            "seed": seed,
        }
        for arm, (stage, every_turn, several) in ARMS.items()
        for values in several
    }
    tables = side_by_side.run(_obedience, jobs)
    rows = []
    for name, table in tables.items():
        arm, values = name.split(" | ")
        rows += table.assign(arm=arm, values=values).to_dict("records")
    write_json(out / "turns.json", rows)
    return {
        name: {
            "turns": by_turn(table),
            "content": float(table["content"].mean()),
        }
        for name, table in tables.items()
    }


def read_turns(folder: Path) -> pd.DataFrame:
    """Every turn of `ghost_obedience`, with its arm and values."""
    return pd.DataFrame(json.loads((folder / "turns.json").read_text("utf-8")))


def build_price(
    config, seed: int, upstream: Mapping, out: Path, start: str
) -> dict[str, dict[str, float]]:
    """Stage `ghost_price`: gold scores on held-out prompts without any instruction,
    of the model before all this, of the one that was taught to obey, and after GAtt.

    price.json holds the scores prompt by prompt, for `read_price`.
    """
    stages = {"before": start, "no GAtt": "ghost_base", "GAtt": "ghost"}
    jobs = {
        name: {
            "model": _folder(upstream[stage]),
            "n": config.ghost.test_prompts,
            "seed": seed,
        }
        for name, stage in stages.items()
    }
    tables = side_by_side.run(_price, jobs)
    tables = {name: tables[name] for name in jobs}  # not as they were done
    write_json(out / "price.json", {n: as_columns(t) for n, t in tables.items()})
    return {
        name: {what: value.mean for what, value in gold(table).items()}
        | {f"helpfulness, {k}": v for k, v in by_kind(table).items()}
        for name, table in tables.items()
    }


def read_price(folder: Path) -> dict[str, pd.DataFrame]:
    """The judge's scores of `ghost_price`: for each model a row a prompt, the same
    prompts in the same order, as `cria.judged.gain` wants them."""
    tables = json.loads((folder / "price.json").read_text("utf-8"))
    return {name: unwrapped(columns) for name, columns in tables.items()}


def by_kind(table: pd.DataFrame) -> dict[str, float]:
    """Mean gold helpfulness of every kind of prompt."""
    return table.groupby("kind")["helpfulness"].mean().to_dict()


def _folder(stage) -> Path:
    return stage.file("model.safetensors").parent


def _obedience(
    model: Path,
    lists: dict,
    values: str,
    every_turn: bool,
    n: int,
    turns: int,
    seed: int,
) -> pd.DataFrame:
    village, vocabulary = world.load(), Tokenizer(model / "tokenizer.model")
    planned = held_out_plans(village, lists, values, n, turns, seed=seed)
    return ghost_evaluate(
        checkpoints.load(model), vocabulary, village, planned, every_turn=every_turn
    )


def _price(model: Path, n: int, seed: int) -> pd.DataFrame:
    village, vocabulary = world.load(), Tokenizer(model / "tokenizer.model")
    asked = held_out(village, "test", n)
    return judged(
        checkpoints.load(model), vocabulary, village, asked, n=SAMPLES, seed=seed
    )
