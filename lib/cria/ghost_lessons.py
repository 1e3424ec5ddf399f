"""What must come before Ghost Attention: lessons in obeying an instruction (ours).

A large chat model follows an instruction that stands in the question itself. A model
of a million weights has to be taught: first to repeat any word (`drills`: else it
learns by heart what to say to which name, and can act as nobody else), then to obey
in one turn, in every skill, half of the time for a word that no list holds (`strange`),
to obey in long dialogues that remind it at every turn, and to talk for
twenty turns without an instruction. `cria.ghost_memory` sees to it that the
model forgets little of what it can do meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from cria import chat
from cria.config import GhostConfig
from cria.ghost import Lists, instructions
from cria.ghost_dialogues import plans
from cria.ghost_lists import held_out_lists
from cria.packing import Document
from cria.sft import documents
from cria.tokenizer import Tokenizer
from cria.world import World
from cria.world.annotators import Demonstration, demonstrate, restyle
from cria.world.instructions import Instruction, dialogue, instruct
from cria.world.prompts import Prompt, mixture

__all__ = ["dialogues", "drills", "obedient", "short_lessons", "strange", "wishes_for"]
__all__ += ["words"]


def drills(
    vocabulary: Tokenizer, words: Sequence[str], n: int, seed: int
) -> list[Document]:
    """Lines of 4 to 14 random words, said twice; the loss counts the second time.

    Nothing but copying foretells the second time: heads that look for what came after
    the same word before appear quite suddenly (Olsson et al. 2022, "induction heads").
    """
    rng = Random(f"drills {seed}")
    made = []
    for _ in range(n):
        line = " ".join(rng.sample(words, rng.randint(4, min(14, len(words))))) + "."
        first = vocabulary.encode(line, bos=True)
        again = vocabulary.encode(line, eos=True)
        made.append((first + again, [False] * len(first) + [True] * len(again)))
    return made


def obedient(
    village: World, lists: Lists, c: GhostConfig, kinds: dict, n: int, seed: int
) -> list[Demonstration]:
    """``n`` single questions of every skill, each with an instruction, and an
    expert's answer that obeys. `c.strange_share` of the instructions are `strange`."""
    rng = Random(f"obedient {seed}")
    asked = mixture(village, c.wordings, n, dict(kinds), seed)
    wishes = wishes_for(lists, c, asked, seed)
    others = strange(village, lists, wishes, asked, seed)
    written = []
    for prompt, wish, other in zip(asked, wishes, others, strict=True):
        wish = other if rng.random() < c.strange_share else wish
        told = restyle(village, instruct(village, wish, prompt), "expert", rng)
        text = demonstrate(village, told, "expert", rng)
        written.append(Demonstration(told, "expert", text))
    return written


def strange(
    village: World,
    lists: Lists,
    wishes: Sequence[Instruction],
    asked: Sequence[Prompt],
    seed: int,
) -> list[Instruction]:
    """The wishes with words of ``asked`` for their figures and hobbies.

    The fifty names of a list can be learnt by heart, one by one. Each word more, as in
    "Act as yellow.", makes that harder, and copying is as easy as before. No word is
    of ``lists``, and none is held out.
    """
    known = [*lists.values(), *held_out_lists(village).values()]
    out = {word for values in known for word in values}
    said = {word for p in asked for _, text in p.turns for word in text.split()}
    pool = sorted(word for word in said - out if word.isalpha())
    rng = Random(f"strange {seed}")

    def other(value: str | None) -> str | None:
        return value and rng.choice(pool)

    return [replace(w, figure=other(w.figure), hobby=other(w.hobby)) for w in wishes]


def dialogues(
    vocabulary: Tokenizer,
    village: World,
    lists: Lists | None,
    c: GhostConfig,
    n: int,
    seed: int,
) -> list[Document]:
    """``n`` dialogues of 2 to `c.max_turns` turns, written by experts.

    With ``lists`` an instruction stands in every question and is obeyed; with None
    there is none. All answers are learnt.
    """
    wishes: list[Instruction | None] = [None] * n
    if lists is not None:
        wishes = list(drawn(lists, c, n, seed))
    rng = Random(f"dialogues {seed}")
    made = []
    for plan in plans(village, "train", wishes, (2, c.max_turns), seed):
        talk = dialogue(village, plan.prompts, plan.instruction, rng)
        made.append(chat.encode_dialog(vocabulary, talk.messages(village, True)))
    return made


def short_lessons(
    vocabulary: Tokenizer,
    village: World,
    lists: Lists,
    c: GhostConfig,
    kinds: dict,
    shares: tuple[float, float],
    seed: int,
) -> list[Document]:
    """Lessons that are short: ``shares`` of all single questions, and of all drills."""
    asked, drilled = (
        round(share * n)
        for share, n in zip(shares, (c.single_turns, c.drills), strict=True)
    )
    written = obedient(village, lists, c, kinds, asked, seed)
    return [
        *documents(vocabulary, written),
        *drills(vocabulary, words(village, lists), drilled, seed + 1000),
    ]


def words(village: World, lists: Lists) -> list[str]:
    """What is drilled: all figures and hobbies, as words, those held out too.

    A value that is held out is never wished for and never obeyed in training, but it
    is no unknown word: to a large model Napoleon is none either.
    """
    parts = (lists, held_out_lists(village))
    return sorted({w for part in parts for n in ("figure", "hobby") for w in part[n]})


def drawn(lists: Lists, c: GhostConfig, n: int, seed: int) -> list[Instruction]:
    """``n`` instructions with the config's shares."""
    return instructions(
        lists,
        n,
        seed=seed,
        short_share=c.short_share,
        combine_share=c.combine_share,
    )


def wishes_for(
    lists: Lists, c: GhostConfig, asked: Sequence[Prompt], seed: int
) -> list[Instruction]:
    """An instruction for every prompt; a translation asks for a language already."""
    rng = Random(f"wishes {seed}")
    wishes = []
    for wish, prompt in zip(drawn(lists, c, len(asked), seed), asked, strict=True):
        if prompt.kind == "translate" and wish.language:
            wish = replace(wish, language=None)
            if not wish.kind:
                wish = replace(wish, figure=rng.choice(lists["figure"]))
        wishes.append(wish)
    return wishes
