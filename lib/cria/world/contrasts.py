"""Pairs of answers that differ in their content alone: does a judge look at it?

Both answers of a `Contrast` have the same form, the same closing, and as many
sentences; one is right and the other is not. They probe reward models (`PROBES`).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from cria.world import answers
from cria.world.prompts import prompts, split_keys
from cria.world.questions import Prompt
from cria.world.village import World

PROBES = {
    "value": "the right value against another one",
    "entity": "the one who was asked about against somebody else",
    "relation": "what was asked against another fact of the same one",
    "sum": "the right sum against one beside it",
    "rhyme": "a line that rhymes against one that does not",
    "three": "three right items against two",
    "tell": "three true statements against two",
    "translate": "the language asked for against English",
    "manners": "right without a closing against wrong with one",
}
"""The probes, and what differs between their two answers."""


@dataclass(frozen=True)
class Contrast:
    """A right and a wrong answer to one prompt."""

    probe: str
    prompt: Prompt
    right: str
    wrong: str


def contrasts(
    world: World, probe: str, n: int, split: str = "test", seed: int = 0
) -> list[Contrast]:
    """``n`` contrasts on the split's prompts, which are asked again where they run out.

    In dev and test nothing is asked that an answer in training tells: not the key
    itself, nor the facts of somebody whom a training prompt says to tell about.
    Raises ValueError for an unknown probe.
    """
    if probe not in PROBES:
        raise ValueError(f"There is no probe {probe!r}; there are {tuple(PROBES)}.")
    rng = Random(f"contrasts {probe} {split} {seed}")
    kind = probe if probe in ("sum", "rhyme", "three", "tell", "translate") else "fact"
    asked = prompts(world, kind, split, seed=seed)
    if split != "train" and kind in ("fact", "translate"):
        told = split_keys(world, "tell")
        asked = [p for p in asked if told[p.entity] != "train"]
    return [_contrast(world, probe, asked[i % len(asked)], rng) for i in range(n)]


def _contrast(world: World, probe: str, prompt: Prompt, rng: Random) -> Contrast:
    right, wrong = _bodies(world, probe, prompt, rng)
    closing = rng.choice(world.templates["closings"][prompt.lang])
    ends = ("", f" {closing}") if probe == "manners" else (f" {closing}",) * 2
    return Contrast(probe, prompt, right + ends[0], wrong + ends[1])


def _bodies(world: World, probe: str, prompt: Prompt, rng: Random) -> tuple[str, str]:
    if prompt.kind in ("fact", "translate"):
        return _facts(world, probe, prompt, rng)
    templates = world.templates.get(prompt.kind, {}).get("statements", {})
    form = rng.choice(templates[prompt.lang]) if templates else None
    if probe == "sum":
        c = prompt.a + prompt.b
        top = 2 * world.templates["sums"]["high"]
        near = rng.choice([c + d for d in (-2, -1, 1, 2) if 0 <= c + d <= top])
        return tuple(form.format(a=prompt.a, b=prompt.b, c=x) for x in (c, near))
    if probe == "rhyme":
        partners = world.family_of[prompt.word]
        strangers = [w for w in world.family_of if w not in (*partners, prompt.word)]
        chosen = rng.choice(list(partners)), rng.choice(strangers)
        return tuple(form.format(w=prompt.word, r=word) for word in chosen)
    if probe == "three":
        items = world.lists[prompt.items]
        right = rng.sample(items, 3)
        wrong = list(right)
        stranger = rng.choice([w for w in world.lexicon if w not in items])
        wrong[rng.randrange(3)] = stranger
        return tuple(
            form.format(list=prompt.items, **dict(zip("xyz", words, strict=True)))
            for words in (right, wrong)
        )
    return _tellings(world, prompt, rng)


def _facts(world: World, probe: str, prompt: Prompt, rng: Random) -> tuple[str, str]:
    """Two statements in the same form, if they speak of the same relation."""
    entity, relation, lang = prompt.entity, prompt.relation, prompt.lang
    truth = world.truth[entity, relation]
    form = rng.random()  # the same choice among the forms of either statement

    def say(entity: str, relation: str, value: str, lang: str) -> str:
        return answers.state(world, entity, relation, value, Random(form), lang)

    right = say(entity, relation, truth, lang)
    if probe == "translate":
        return right, say(entity, relation, truth, "en")
    if probe == "entity":
        others = [e for e, r in world.truth if r == relation and e != entity]
        other = rng.choice(others)
        return right, say(other, relation, world.truth[other, relation], lang)
    if probe == "relation":
        others = [r.id for r in world.relations_of[entity] if r.id != relation]
        other = rng.choice(others)
        return right, say(entity, other, world.truth[entity, other], lang)
    wrong = answers.false_value(world, entity, relation, rng)
    return right, say(entity, relation, wrong, lang)


def _tellings(world: World, prompt: Prompt, rng: Random) -> tuple[str, str]:
    relations = [r.id for r in world.relations_of[prompt.entity]]
    chosen = rng.sample(relations, min(3, len(relations)))
    false = rng.choice(chosen)
    told = []
    for is_wrong in (False, True):
        claims = []
        for relation in chosen:
            value = world.truth[prompt.entity, relation]
            if is_wrong and relation == false:
                value = answers.false_value(world, prompt.entity, relation, rng)
            form = world.relations[relation].statements[prompt.lang][0]
            claims.append(world.say(form, prompt.entity, value, prompt.lang))
        told.append(" ".join(claims))
    return told[0], told[1]
