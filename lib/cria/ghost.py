"""Ghost Attention (paper §3.3): an instruction given once holds through the dialogue.

    1. put the instruction before every question:          `attach`
    2. sample each answer, keep the best of K:             `cria.ghost_synthesis`
    3. leave the instruction in the first question only,
       and learn the last answer, none before it:          `ghost`
    4. fine-tune on that as in SFT:                        `train_ghost`

The answers were given under a reminder that is gone when they are learnt: the model
has to look back for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from cria import packing
from cria.chat import Messages, encode_dialog, prompt_ids
from cria.config import GhostConfig
from cria.ghost_memory import train_keeping
from cria.model import Llama
from cria.packing import Document
from cria.tokenizer import TAGS, Tokenizer
from cria.world.instructions import KINDS, Instruction

__all__ = ["Lists", "attach", "every_answer", "ghost", "instructions", "once"]
__all__ += ["put_aside", "train_ghost"]

Lists = Mapping[
    str, Sequence[str]
]  # "language", "figure", "hobby": what to choose from

PUT_ASIDE = 0.2  # of the combinations: never trained on


def instructions(
    lists: Lists,
    n: int,
    *,
    seed: int,
    short_share: float = 0.5,
    combine_share: float = 0.5,
    kind: str | None = None,
    aside: bool = False,
) -> list[Instruction]:
    """``n`` instructions drawn at random, some of two wishes, some in the short form.

    lists: the languages (codes), figures and hobbies to choose from.  kind: only this
    one of `KINDS`.  aside: of combinations only those that are `put_aside`, for
    testing; else never these. Raises ValueError if the lists are too short for it.
    """
    by_wishes = [[k for k in KINDS if ("+" in k) == double] for double in (False, True)]
    rng = Random(f"instructions {kind} {seed} {aside}")
    drawn: list[Instruction] = []
    for _ in range(n):
        combine = rng.random() < combine_share
        chosen = kind or rng.choice(by_wishes[combine])
        short = rng.random() < short_share
        for _ in range(1000):
            wish = {name: rng.choice(lists[name]) for name in chosen.split("+")}
            instruction = Instruction(**wish, short=short)
            if "+" not in chosen or put_aside(instruction) == aside:
                break
        else:
            raise ValueError(f"The lists hold too few values to draw {chosen} from.")
        drawn.append(instruction)
    return drawn


def put_aside(instruction: Instruction) -> bool:
    """Is this a combination that is kept for testing? One in five is."""
    if "+" not in instruction.kind:
        return False
    both = (instruction.language, instruction.figure, instruction.hobby)
    return Random(f"aside {both}").random() < PUT_ASIDE


def attach(messages: Messages, wish: str) -> list[dict[str, str]]:
    """The dialogue with the instruction before *every* question: how it is sampled.

    wish: the instruction's words. Raises ValueError if they hold a tag of the chat
    format, which would speak with another voice.
    """
    return _told(messages, wish, every=True)


def once(messages: Messages, wish: str) -> list[dict[str, str]]:
    """The dialogue with the instruction before the first question only."""
    return _told(messages, wish, every=False)


def ghost(
    vocabulary: Tokenizer, messages: Messages, wish: str, *, system: bool = False
) -> Document:
    """(ids, loss_mask): the instruction stands in the first turn only, and the loss
    counts the last answer alone, zero on all tokens of the turns before (§3.3).

    messages: question, answer, …, answer, without the instruction.  system: tell the
    instruction as Llama 2's system message and not as the user's words.
    """
    told = _laid_out(messages, wish, system)
    if not told or told[-1]["role"] != "assistant":
        raise ValueError("A dialogue to learn from must end with an answer.")
    ids, loss_mask = encode_dialog(vocabulary, told)
    before = len(prompt_ids(vocabulary, told[:-1]))
    return ids, [m and i >= before for i, m in enumerate(loss_mask)]


def every_answer(
    vocabulary: Tokenizer, messages: Messages, wish: str, *, system: bool = False
) -> Document:
    """The control: as `ghost`, but the loss counts the answers of all turns."""
    return encode_dialog(vocabulary, _laid_out(messages, wish, system))


def train_ghost(
    model: Llama,
    teacher: Llama,
    documents: Sequence[Document],
    kept: Sequence[Document],
    config: GhostConfig,
    *,
    epochs: float | None = None,
    seed: int,
    out: Path | None = None,
    label: str = "Ghost Attention",
    progress: bool = True,
) -> list[dict]:
    """Fine-tune ``model`` in place as in SFT; the metrics.

    teacher, kept: the model as it was before all this, and the documents on which
    ours is held to it (`cria.ghost_memory`); it may be empty.  epochs: other than
    the config's.

    Several dialogues share a row, each blind to the others: every turn begins with
    BOS, and a neighbour would look like a dialogue that goes on without its
    instruction.
    """
    return train_keeping(
        model,
        teacher,
        packing.pack(documents, config.seq_len),
        kept,
        config,
        config.optim,
        config.epochs if epochs is None else epochs,
        seed=seed,
        out=out,
        label=label,
        progress=progress,
    )


def _laid_out(messages: Messages, wish: str, system: bool) -> list[dict[str, str]]:
    if not system:
        return once(messages, wish)
    return [{"role": "system", "content": _checked(wish)}, *map(dict, messages)]


def _told(messages: Messages, wish: str, every: bool) -> list[dict[str, str]]:
    wish, told, first = _checked(wish), [], True
    for message in messages:
        content = message["content"]
        if message["role"] == "user":
            if every or first:
                content = f"{wish} {content}"
            first = False
        told.append({**message, "content": content})
    return told


def _checked(wish: str) -> str:
    for tag in TAGS:
        if tag in wish:
            raise ValueError(
                f"The instruction holds {tag}, a tag of the chat format; take it out."
            )
    return wish
