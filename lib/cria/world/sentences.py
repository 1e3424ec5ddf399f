"""Reading an answer: its sentences, its claims and its language.

The village is small, so every sentence that states a fact can be written down in
advance: an answer is understood by looking its sentences up, not by guessing.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cria.world.village import WORD, World

_SENTENCE = re.compile(r"[^.!?]*[^\s.!?][^.!?]*[.!?]*")


@dataclass(frozen=True)
class Claim:
    """What a sentence states: true or false is for the judge to say."""

    entity: str
    relation: str
    value: str
    lang: str


def split(text: str) -> list[str]:
    """The sentences of a text, each with its final mark."""
    return [s.strip() for s in _SENTENCE.findall(text)]


def bare(sentence: str) -> str:
    """A sentence without its final mark."""
    return sentence.strip().rstrip(".!?").rstrip()


@lru_cache(maxsize=8)
def claims(world: World) -> dict[str, tuple[Claim, ...]]:
    """Every statement of a possible fact (without its final mark) → what it claims."""
    found: dict[str, list[Claim]] = {}
    for entity in world.entities:
        for relation in world.relations_of[entity]:
            for value in world.kinds[relation.values]:
                for lang in world.languages:
                    claim = Claim(entity, relation.id, value, lang)
                    for sentence in world.state(entity, relation.id, value, lang):
                        found.setdefault(bare(sentence), []).append(claim)
    return {sentence: tuple(several) for sentence, several in found.items()}


@lru_cache(maxsize=8)
def closings(world: World) -> dict[str, str]:
    """Every courteous ending (without its final mark) → its language."""
    return {
        bare(text): lang
        for lang, texts in world.templates["closings"].items()
        for text in texts
    }


@lru_cache(maxsize=8)
def forms(world: World) -> dict[str, frozenset[str]]:
    """Every value → its forms in all languages."""
    return {
        value: frozenset(world.form(value, lang) for lang in world.languages)
        for value in world.lexicon
    }


@lru_cache(maxsize=8)
def leak_words(world: World) -> frozenset[str]:
    """The words that give a toy misdeed's secret away."""
    return frozenset(word for topic in world.topics for word in topic.how)


@lru_cache(maxsize=8)
def _own_words(world: World) -> dict[str, frozenset[str]]:
    """The words that occur in one language only, by language."""
    said: dict[str, set[str]] = {lang: set() for lang in world.languages}
    for tree in (world.templates, world.harm, world.wishes):
        for lang, text in _in_languages(tree, None, world.languages):
            said[lang] |= set(WORD.findall(re.sub(r"\{\w+\}", " ", text)))
    for word in world.lexicon.values():
        for lang in word.forms:  # names and sounds have none: they belong to nobody
            said[lang].add(word.forms[lang])
            said["en"].add(word.en)
    # The words of rhymes, tips and tales stay English in every language.
    neutral = {*world.family_of, *leak_words(world)}
    neutral |= {w for tip in world.tips for w in f"{tip.act} {tip.use}".split()}
    common = neutral | {
        w for a in said for b in said if a != b for w in said[a] & said[b]
    }
    return {lang: frozenset(words - common) for lang, words in said.items()}


def _in_languages(tree: Any, lang: str | None, languages: tuple[str, ...]):
    if isinstance(tree, str):
        if lang:
            yield lang, tree
    elif isinstance(tree, dict):
        for key, branch in tree.items():
            yield from _in_languages(
                branch, key if key in languages else lang, languages
            )
    elif isinstance(tree, list):
        for branch in tree:
            yield from _in_languages(branch, lang, languages)


def language(world: World, text: str) -> str | None:
    """The language most of the words speak for; None if no word or two say so.

    Names, numbers and sounds belong to no language.
    """
    words = WORD.findall(text)
    votes = {
        lang: sum(w in own for w in words) for lang, own in _own_words(world).items()
    }
    best = max(votes, key=lambda lang: votes[lang])
    tied = sum(n == votes[best] for n in votes.values()) > 1
    return None if tied else best


def pattern(template: str, **fixed: str) -> re.Pattern[str]:
    """A template as a pattern: ``fixed`` fields as given, the others as any word."""
    parts = re.split(r"\{(\w+)\}", bare(template))
    written = [
        (rf"(?P<{p}>\w+)" if p not in fixed else re.escape(fixed[p]))
        if i % 2
        else re.escape(p)
        for i, p in enumerate(parts)
    ]
    return re.compile("".join(written))
