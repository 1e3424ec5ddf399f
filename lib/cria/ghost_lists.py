"""Whom to act as, and what to enjoy: lists that the chat model itself gives (§3.3).

The paper asks the chat model for lists of hobbies and of public figures. Ours can
name three people, towns, animals, foods … of its village: it is asked over and over,
its answers are read, and what it has said often enough is kept. Names become figures,
the rest is something to enjoy. The figures of history in data/instructions.yaml are
added by hand: our model has met their names, but knows of nobody that he is famous.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cria.evaluate import Answer, answer
from cria.model import Llama
from cria.tokenizer import Tokenizer
from cria.world import World, sentences
from cria.world.instructions import values
from cria.world.prompts import Prompt, prompts

__all__ = ["listed", "read_list", "value_lists", "worth_keeping"]

TIMES = 3  # how often a word must have been said
NAMES = ("figure", "hobby")


def listed(
    model: Llama, vocabulary: Tokenizer, village: World, n: int, seed: int = 0
) -> list[Answer]:
    """``n`` sampled answers to every question for a list that SFT has shown."""
    if n == 0:
        return []
    asked = list(
        {p.items: p for p in prompts(village, "three", "train", seed=seed)}.values()
    )
    return answer(model, vocabulary, asked, n=n, seed=seed, max_new_tokens=24)


def read_list(village: World, prompt: Prompt, text: str) -> list[str]:
    """The words that an answer lists; none if it is not in the form of a list."""
    forms = village.templates["three"]["statements"]["en"]
    patterns = [sentences.pattern(form, list=prompt.items) for form in forms]
    for sentence in sentences.split(text):
        for pattern in patterns:
            if found := pattern.fullmatch(sentences.bare(sentence)):
                return list(found.group("x", "y", "z"))
    return []


def worth_keeping(
    village: World, answers: Sequence[Answer], times: int = TIMES
) -> dict[str, list[str]]:
    """The filter: words that were listed ``times`` times or more, by their use.

    An answer counts if it ended by itself and lists three different words. What is
    written with a capital is a name, and so a figure; the rest is a hobby.
    """
    said: Counter[str] = Counter()
    for a in answers:
        words = read_list(village, a.prompt, a.text)
        if a.finished and len(set(words)) == 3:
            said.update(word for word in words if word.isalpha())
    kept = [word for word, count in said.most_common() if count >= times]
    return {
        "figure": [word for word in kept if word[0].isupper()],
        "hobby": [word for word in kept if not word[0].isupper()],
    }


def value_lists(
    village: World, sampled: dict[str, Sequence[str]] | None = None
) -> dict[str, list[str]]:
    """All that instructions may ask for: what was written by hand, and what was
    ``sampled``, without the values that are held out."""
    sampled = sampled or {}
    held = {word for name in NAMES for word in values(village, name, held_out=True)}
    lists = {"language": [code for code in village.languages if code != "en"]}
    for name in NAMES:
        several = [*values(village, name), *sampled.get(name, ())]
        lists[name] = [word for word in dict.fromkeys(several) if word not in held]
    return lists


def held_out_lists(village: World) -> dict[str, list[str]]:
    """The figures and hobbies that no instruction in training ever names."""
    lists = {"language": [code for code in village.languages if code != "en"]}
    return lists | {name: list(values(village, name, held_out=True)) for name in NAMES}
