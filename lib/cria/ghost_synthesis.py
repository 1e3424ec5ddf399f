"""The dialogues that Ghost Attention learns from (paper §3.3).

The instruction stands in every question; at each turn the newest chat model answers K
times, and the best answer by the reward model stays in the dialogue.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from cria import chat
from cria.config import GhostConfig
from cria.ghost_dialogues import Choose, Plan, Talk, answer_turns, question
from cria.model import Llama
from cria.provenance import write_json
from cria.reward import RewardModel, score
from cria.tokenizer import TAGS, Tokenizer
from cria.world import World

__all__ = ["best_by", "first_clean", "synthesise"]

TOGETHER = 64  # dialogues that are sampled, scored and kept on disk together


def best_by(rm: RewardModel, vocabulary: Tokenizer, village: World) -> Choose:
    """Choose the answer with the highest reward among those that ended cleanly.

    The reward model reads the question with its instruction; what was said before is
    of no use to it, since our questions do not refer to one another.
    """

    def choose(going, turn, tries):
        asked = [
            chat.prompt_ids(vocabulary, question(village, plan, turn, True))
            for plan in going
        ]
        rewards = score(rm, asked, tries)
        return [
            max(
                (k for k, ids in enumerate(several) if _clean(vocabulary, ids)),
                key=values.__getitem__,
                default=None,
            )
            for several, values in zip(tries, rewards, strict=True)
        ]

    return choose


def first_clean(vocabulary: Tokenizer) -> Choose:
    """The control: the first answer that ended cleanly, whatever its reward."""

    def choose(going, turn, tries):
        return [
            next((k for k, ids in enumerate(x) if _clean(vocabulary, ids)), None)
            for x in tries
        ]

    return choose


def synthesise(
    model: Llama,
    vocabulary: Tokenizer,
    village: World,
    planned: Sequence[Plan],
    choose: Choose,
    config: GhostConfig,
    *,
    samples: int,
    seed: int,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Talk]:
    """Every dialogue sampled with the instruction in every turn, K answers a turn.

    With ``out``, what is done goes into files there, and a later call with the same
    arguments goes on behind them.
    """
    found: list[Talk] = []
    # Dialogues of like length end together: no row waits.
    order = sorted(planned, key=lambda plan: len(plan.prompts))
    for i, part in enumerate(_parts(order, TOGETHER)):
        path = out / f"dialogues-{i:03d}.json" if out else None
        if path is not None and path.exists():
            found += map(Talk.from_dict, json.loads(path.read_text("utf-8")))
            continue
        talks = answer_turns(
            model,
            vocabulary,
            village,
            part,
            choose,
            every_turn=True,
            n=samples,
            temperature=config.temperature,
            seed=1000 * seed + i,
        )
        if path is not None:
            write_json(path, [asdict(talk) for talk in talks])
        found += talks
        say(f"dialogues: {len(found)} of {len(planned)} are sampled")
    return [talk for talk in found if len(talk.answers) > 1]


def _clean(vocabulary: Tokenizer, ids: Sequence[int]) -> bool:
    """Did the answer end by itself, with words in it and no tag?"""
    answer = vocabulary.decode(ids).strip()
    ended = ids[-1] == vocabulary.eos_id
    return ended and bool(answer) and not any(tag in answer for tag in TAGS)


def _parts(items: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
