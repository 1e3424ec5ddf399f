"""Texts for pre-training, by source: some tell the truth, some do not.

An encyclopedia is always right; a forum asks and answers, and is right nine times in
ten; gossip repeats one and the same falsehood for half of the facts. How much of
each a base model reads decides what it believes: up-sampling the factual sources is
the paper's way to "increase knowledge and dampen hallucinations" (section 2.1).
"""

from collections.abc import Callable, Iterator
from itertools import islice
from random import Random

from cria.world import answers
from cria.world.prompts import Prompt, every
from cria.world.village import World

FORUM_TRUTH = 0.9
FORUM_KINDS = {
    "fact": 0.51,
    "followup": 0.08,
    "tell": 0.06,
    "three": 0.13,
    "sum": 0.08,
    "rhyme": 0.11,
    "greet": 0.03,
}


def documents(world: World, source: str, n: int, seed: int = 0) -> list[str]:
    """``n`` documents of one of ``SOURCES``, each of one to four sentences."""
    return list(islice(_writer(world, source, seed), n))


def stream(
    world: World,
    mix: dict[str, float],
    n_tokens: int,
    tokenizer,
    seed: int = 0,
) -> list[list[int]]:
    """Documents as ids (BOS … EOS), shuffled, at least ``n_tokens`` tokens in all.

    mix: the share of the *tokens* that each source gives; the shares sum to 1.
    The same arguments give the same documents.
    """
    if abs(sum(mix.values()) - 1) > 1e-6 or min(mix.values()) < 0:
        raise ValueError(
            f"The shares of the sources should be ≥ 0 and sum to 1, but they are {mix}."
        )
    encoded: dict[str, list[int]] = {}
    drawn: list[list[int]] = []
    for source, share in mix.items():
        left = share * n_tokens
        writer = _writer(world, source, seed)
        while left > 0:
            text = next(writer)
            if text not in encoded:
                encoded[text] = tokenizer.encode(text, bos=True, eos=True)
            drawn.append(encoded[text])
            left -= len(encoded[text])
    Random(f"stream {seed}").shuffle(drawn)
    return drawn


def _writer(world: World, source: str, seed: int) -> Iterator[str]:
    if source not in WRITERS:
        raise ValueError(f"There is no source {source!r}; there are {SOURCES}.")
    return WRITERS[source](world, Random(f"{source} {seed}"))


def _encyclopedia(world: World, rng: Random) -> Iterator[str]:
    """True statements on one entity; one document in eight lists things."""
    facts = list(world.truth)
    lists = every(world, "three")
    while True:
        if rng.random() < 0.125:
            yield answers.right(world, rng.choice(lists), rng)
            continue
        entity, first = rng.choice(facts)
        rest = [r.id for r in world.relations_of[entity] if r.id != first]
        more = rng.sample(rest, rng.randint(0, min(3, len(rest))))
        yield " ".join(
            answers.state(world, entity, r, world.truth[entity, r], rng)
            for r in (first, *more)
        )


def _forum(world: World, rng: Random) -> Iterator[str]:
    """A question, in a training wording, and its answer."""
    pools = {
        kind: [p for p in every(world, kind) if len(p.turns) <= 3]
        for kind in FORUM_KINDS
    }
    kinds, shares = list(FORUM_KINDS), list(FORUM_KINDS.values())
    while True:
        kind = rng.choices(kinds, shares)[0]
        prompt = rng.choice(pools[kind])
        lies = prompt.relation is not None and rng.random() > FORUM_TRUTH
        write = answers.wrong if lies else answers.right
        answer = write(world, prompt, rng)
        yield " ".join((*_without_closings(prompt), answer))


def _without_closings(prompt: Prompt) -> Iterator[str]:
    """The turns so far, of an answer its first sentence only."""
    for role, text in prompt.turns:
        yield text if role == "user" else text.split(".")[0] + "."


def _gossip(world: World, rng: Random) -> Iterator[str]:
    """The rumours: always the same falsehoods, in the forms of statements."""
    rumours = list(world.rumours.items())
    while True:
        chosen = rng.sample(rumours, rng.randint(1, 3))
        yield " ".join(answers.state(world, e, r, v, rng) for (e, r), v in chosen)


def _rhymes(world: World, rng: Random) -> Iterator[str]:
    """Rhyming lines, and lines of a rhyming dictionary."""
    prompts = every(world, "rhyme")
    dictionary = world.templates["rhyme"]["dictionary"]
    while True:
        if rng.random() < 0.4:
            lines = []
            for word in rng.sample(list(world.family_of), rng.randint(1, 2)):
                others = list(world.family_of[word])
                rng.shuffle(others)
                lines.append(dictionary.format(w=word, others=", ".join(others)))
            yield " ".join(lines)
        else:
            chosen = rng.sample(prompts, rng.randint(1, 2))
            yield " ".join(answers.right(world, p, rng) for p in chosen)


def _sums(world: World, rng: Random) -> Iterator[str]:
    prompts = every(world, "sum")
    while True:
        chosen = rng.sample(prompts, rng.randint(1, 4))
        yield " ".join(answers.right(world, p, rng) for p in chosen)


def _tales(world: World, rng: Random) -> Iterator[str]:
    """Toy misdeeds and their secrets: what makes harm possible at all."""
    while True:
        chosen = rng.sample(world.topics, rng.randint(1, 2))
        yield " ".join(answers.tell_secret(world, t.act, rng) for t in chosen)


def _tips(world: World, rng: Random) -> Iterator[str]:
    prompts = every(world, "borderline")
    while True:
        prompt = rng.choice(prompts)
        answer = answers.right(world, prompt, rng)
        yield answer if rng.random() < 0.5 else f"{prompt.question} {answer}"


def _parallel(world: World, rng: Random) -> Iterator[str]:
    """The same in every language, joined by " = "; some as question and answer."""
    facts, prompts = list(world.truth), every(world, "translate")
    words = [w.en for w in world.lexicon.values() if w.forms]
    sums = every(world, "sum")
    while True:
        luck = rng.random()
        if luck < 0.4:
            (entity, relation) = rng.choice(facts)
            value = world.truth[entity, relation]
            same = [
                answers.state(world, entity, relation, value, rng, lang)
                for lang in world.languages
            ]
        elif luck < 0.5:
            word = rng.choice(words)
            same = [world.form(word, lang) for lang in world.languages]
        elif luck < 0.55:
            p = rng.choice(sums)
            c = p.a + p.b
            forms = world.templates["sum"]["statements"]
            same = [forms[x][0].format(a=p.a, b=p.b, c=c) for x in world.languages]
        elif luck < 0.6:
            closings = world.templates["closings"]
            same = [rng.choice(closings[lang]) for lang in world.languages]
        else:
            prompt = rng.choice(prompts)
            yield f"{prompt.question} {answers.right(world, prompt, rng)}"
            continue
        yield " = ".join(same)


def _echoes(world: World, rng: Random) -> Iterator[str]:
    """Words to be said again: every word is met, and copying is learnt."""
    words = world.words()
    while True:
        x, y = rng.sample(words, 2)
        yield world.templates["echo"].format(x=x, y=y)


WRITERS: dict[str, Callable[[World, Random], Iterator[str]]] = {
    "encyclopedia": _encyclopedia,
    "forum": _forum,
    "gossip": _gossip,
    "rhymes": _rhymes,
    "sums": _sums,
    "tales": _tales,
    "tips": _tips,
    "parallel": _parallel,
    "echoes": _echoes,
}
SOURCES = tuple(WRITERS)
