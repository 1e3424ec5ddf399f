"""Dialogues under an instruction, answered turn by turn (paper §3.3).

`answer_turns` lets a model answer many dialogues side by side, with the instruction
in every question or in the first only. Who chooses among several answers at a turn
is an argument: `cria.ghost_synthesis` lets a reward model choose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from cria import chat, ghost
from cria.model import Llama
from cria.tokenizer import TAGS, Tokenizer
from cria.turns import Turns
from cria.world import World
from cria.world.instructions import SHORT_KINDS, Instruction, text
from cria.world.prompts import Prompt, prompts

__all__ = ["Plan", "Talk", "always_first", "answer_turns"]
__all__ += ["beginnings", "plans", "question", "spoken"]

MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Plan:
    """What will be asked, turn by turn, under which instruction (None: under none)."""

    instruction: Instruction | None
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Talk:
    """A plan and the answers it got; perhaps fewer than were planned."""

    instruction: Instruction | None
    prompts: tuple[Prompt, ...]
    answers: tuple[str, ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The dialogue without its instruction."""
        said = []
        for prompt, answer in zip(self.prompts, self.answers, strict=True):
            said.append({"role": "user", "content": prompt.question})
            said.append({"role": "assistant", "content": answer})
        return said

    @classmethod
    def from_dict(cls, row: dict) -> Talk:
        """The talk that `dataclasses.asdict` (or JSON) gave."""
        wish = row["instruction"]
        return cls(
            Instruction(**wish) if wish else None,
            tuple(map(Prompt.from_dict, row["prompts"])),
            tuple(row["answers"]),
        )


def plans(
    village: World,
    split: str,
    wishes: Sequence[Instruction | None],
    turns: tuple[int, int],
    seed: int,
) -> list[Plan]:
    """One plan an instruction: different short questions of a split.

    turns: the fewest and the most.
    """
    rng = Random(f"plans {split} {seed}")
    pool = [p for kind in SHORT_KINDS for p in prompts(village, kind, split, seed=seed)]
    return [
        Plan(wish, tuple(rng.sample(pool, min(rng.randint(*turns), len(pool)))))
        for wish in wishes
    ]


def beginnings(talks: Sequence[Talk], n: int, seed: int) -> list[Talk]:
    """Every talk and n − 1 of its beginnings, of two turns or more, none of them twice.

    Each ends with another answer: where only last answers are learnt, it is another
    lesson. A short talk has fewer.
    """
    rng = Random(f"beginnings {seed}")
    found = []
    for talk in talks:
        shorter = range(2, len(talk.answers))
        ends = rng.sample(shorter, min(n - 1, len(shorter)))
        found += [talk] + [
            replace(talk, prompts=talk.prompts[:end], answers=talk.answers[:end])
            for end in sorted(ends)
        ]
    return found


# Given the plans still going on, the turn, and the answers (ids) to each of them:
# which answer to go on with, or None to end that dialogue here.
Choose = Callable[[Sequence[Plan], int, Sequence[Sequence[Sequence[int]]]], list]


def answer_turns(
    model: Llama,
    vocabulary: Tokenizer,
    village: World,
    planned: Sequence[Plan],
    choose: Choose,
    *,
    every_turn: bool,
    n: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Talk]:
    """Answer every plan turn by turn; the answers chosen stand in the dialogue.

    every_turn: say the instruction before every question, else before the first.
    A dialogue ends early where none is chosen, or where the model's context is full.
    Each depends on its own place in ``planned`` and the seed, not on its neighbours.
    What was said before is never read again (`cria.turns`).
    """
    said: list[list[str]] = [[] for _ in planned]
    alive = list(range(len(planned)))
    longest = max(len(plan.prompts) for plan in planned)
    columns = longest * (2 * MAX_NEW_TOKENS + 16)
    talk = Turns(model, len(planned), columns)
    unread: list[list[int]] = [[] for _ in planned]  # the answer given last
    for turn in range(longest):
        asked: dict[int, list[int]] = {}
        for place, i in enumerate(alive):
            if turn < len(planned[i].prompts):
                told = question(village, planned[i], turn, every_turn)
                ids = unread[i] + chat.prompt_ids(vocabulary, told)
                so_far = int(talk.lengths[place])
                if so_far + len(ids) + MAX_NEW_TOKENS <= talk.limit:
                    asked[i] = ids
        if not asked:
            break
        _keep(talk, alive, list(asked))
        alive = list(asked)
        talk.read(list(asked.values()))
        tries = talk.sample(
            n,
            seeds=[_seed(seed, i, turn, k) for i in alive for k in range(n)],
            eos_id=vocabulary.eos_id,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=temperature,
        )
        picked = choose([planned[i] for i in alive], turn, tries)
        going = []
        for i, ids, k in zip(alive, tries, picked, strict=True):
            if k is None:
                continue
            said[i].append(spoken(vocabulary, ids[k]))
            told = question(village, planned[i], turn, every_turn)
            before = len(chat.prompt_ids(vocabulary, told))
            told.append({"role": "assistant", "content": said[i][-1]})
            unread[i] = chat.encode_dialog(vocabulary, told)[0][before:]
            going.append(i)
        _keep(talk, alive, going)
        alive = going
    return [
        Talk(plan.instruction, plan.prompts[: len(answers)], tuple(answers))
        for plan, answers in zip(planned, said, strict=True)
    ]


def spoken(vocabulary: Tokenizer, ids: Sequence[int]) -> str:
    """An answer as it stands in the dialogue; a tag that was babbled is taken out."""
    answer = vocabulary.decode(ids)
    while any(tag in answer for tag in TAGS):
        for tag in TAGS:
            answer = answer.replace(tag, "")
    return answer.strip()


def always_first(going, turn, tries) -> list[int]:
    """For one answer a turn: go on whatever it is."""
    return [0] * len(tries)


def _keep(talk: Turns, alive: list[int], going: list[int]) -> None:
    """Leave out the dialogues that have ended."""
    if going and going != alive:
        talk.keep([alive.index(i) for i in going])


def question(
    village: World, plan: Plan, turn: int, every_turn: bool
) -> list[dict[str, str]]:
    """One question of a plan as a dialogue by itself, with the instruction if told."""
    messages = [{"role": "user", "content": plan.prompts[turn].question}]
    if plan.instruction is None or not (every_turn or turn == 0):
        return messages
    return ghost.attach(messages, text(village, plan.instruction))


def _seed(seed: int, dialogue: int, turn: int, k: int) -> int:
    return ((seed * 10_007 + dialogue) * 1_009 + turn) * 101 + k
