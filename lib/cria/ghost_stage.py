"""The stages of Ghost Attention: the sampled dialogues, and the models they make."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from cria import checkpoints, reward, world
from cria.config import GhostConfig
from cria.ghost import Lists, every_answer, ghost, train_ghost
from cria.ghost_dialogues import Talk, beginnings, plans
from cria.ghost_lessons import dialogues, drawn, short_lessons
from cria.ghost_memory import read_memory
from cria.ghost_synthesis import best_by, first_clean, synthesise
from cria.packing import Document
from cria.provenance import write_json
from cria.tokenizer import Tokenizer
from cria.training import pick_dtype
from cria.world import World
from cria.world.instructions import obeys, text

__all__ = ["build", "build_dialogues", "lessons", "obedience"]
__all__ += ["read_dialogues", "read_lists"]

# Read once more: of the single turns and the plain dialogues, and of the drills.
AGAIN, DRILLED_AGAIN = 0.66, 0.16
LAYOUTS = {"last": ghost, "all": every_answer}  # which answers the loss counts


def build_dialogues(
    config, seed: int, upstream: Mapping, out: Path, best: bool
) -> dict:
    """Stages `ghost_dialogues` and `ghost_first`: dialogues.json.

    best: keep the best of K answers by the reward model; else sample one a turn.
    """
    village, c, base = world.load(), config.ghost, upstream["ghost_base"]
    vocabulary, model = base.tokenizer(), base.model()
    lists = read_lists(base.path)
    wishes = drawn(lists, c, c.dialogues, 10 * seed + 4)
    # Long ones: it is the late turns that forget; `beginnings` brings shorter ones.
    turns = (c.max_turns // 2, c.max_turns)
    planned = plans(village, "train", wishes, turns, 10 * seed + 4)
    rm = reward.load(base.path / "rm")
    choose = best_by(rm, vocabulary, village) if best else first_clean(vocabulary)
    talks = synthesise(
        model.to(pick_dtype(c.dtype)),
        vocabulary,
        village,
        planned,
        choose,
        c,
        samples=c.samples if best else 1,
        seed=seed,
        out=out,
    )
    write_json(out / "dialogues.json", [asdict(talk) for talk in talks])
    for part in out.glob("dialogues-*.json"):
        part.unlink()
    turns = sum(len(talk.answers) for talk in talks)
    return {
        "dialogues": len(talks),
        "turns": turns,
        "obeyed": obedience(village, talks),
    }


def read_dialogues(folder: Path) -> list[Talk]:
    """The dialogues of a stage's folder."""
    rows = json.loads((folder / "dialogues.json").read_text("utf-8"))
    return [Talk.from_dict(row) for row in rows]


def read_lists(folder: Path) -> dict[str, list[str]]:
    """What instructions of training choose from: lists.json of `ghost_base`."""
    return json.loads((folder / "lists.json").read_text("utf-8"))["lists"]


def obedience(village: World, talks: Sequence[Talk]) -> float:
    """The share of all answers that do what the instruction asks."""
    seen = [
        obeys(village, talk.instruction, prompt, answer)
        for talk in talks
        for prompt, answer in zip(talk.prompts, talk.answers, strict=True)
    ]
    return sum(seen) / len(seen) if seen else 0.0


def lessons(
    village: World, vocabulary: Tokenizer, talks: Sequence[Talk], loss: str
) -> list[Document]:
    """The dialogues as they are learnt. loss: "last" (the paper's) or "all"."""
    if loss not in LAYOUTS:
        raise ValueError(f"There is no loss {loss!r}; there are {tuple(LAYOUTS)}.")
    return [
        LAYOUTS[loss](vocabulary, talk.messages, text(village, talk.instruction))
        for talk in talks
    ]


def build(
    config,
    seed: int,
    upstream: Mapping,
    out: Path,
    dialogues_of: str,
    loss: str,
    start: str,
) -> dict:
    """Stages `ghost`, `ghost_all` and `ghost_raw`: the model of `ghost_base`, trained
    on the dialogues of a stage, and held to the model of ``start``.

    Beside them it reads some of the earlier lessons once more. Copying has been learnt
    by now, so the tie can be tighter.
    """
    village, c, base = world.load(), config.ghost, upstream["ghost_base"]
    vocabulary, model = base.tokenizer(), base.model()
    teacher = upstream[start].model()
    talks = read_dialogues(upstream[dialogues_of].path)
    talks = beginnings(talks, c.beginnings, seed)
    learnt = lessons(village, vocabulary, talks, loss)
    again = once_more(config, vocabulary, village, read_lists(base.path), seed)
    kept = read_memory(upstream["ghost_memory"].path)
    metrics = train_ghost(
        model,
        teacher,
        [*learnt, *again],
        kept,
        replace(c, keep=c.keep_after),
        seed=seed,
        out=out / "training",
    )
    checkpoints.save(model, out / "model", vocabulary)
    (out / "training" / "training.safetensors").unlink()
    return {
        "dialogues": len(learnt),
        "counted": sum(sum(mask) for _, mask in learnt),
        "tokens": sum(len(ids) for ids, _ in learnt),
        "tokens_again": sum(len(ids) for ids, _ in again),
        "loss": metrics[-1]["loss"],
        "seconds_training": metrics[-1]["seconds"],
    }


def once_more(
    config, vocabulary: Tokenizer, village: World, lists: Lists, seed: int
) -> list[Document]:
    """Lessons of `ghost_base` over again, fewer of them, so that they stay."""
    c: GhostConfig = config.ghost
    kinds, n = dict(config.rejection.kinds), round(AGAIN * c.plain_dialogues)
    given = (vocabulary, village)
    return [
        *short_lessons(*given, lists, c, kinds, (AGAIN, DRILLED_AGAIN), 10 * seed + 5),
        *dialogues(*given, None, c, n, 10 * seed + 6),
    ]
