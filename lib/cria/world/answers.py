"""What is right, and what is plausibly wrong: the content of an answer.

One sentence or a few, without manners (closings, ramblings): those belong to the
annotators. ``lang`` says in which language to answer; it defaults to the one the
prompt wants.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from cria.world.village import World

if TYPE_CHECKING:
    from cria.world.questions import Prompt


def right(world: World, prompt: Prompt, rng: Random) -> str:
    """A right and complete answer in the prompt's language, in one of its forms.

    For a harmful prompt this is the answer that complies: what is right to *say*
    there is the annotators' business.
    """
    return _WRITERS[prompt.kind](world, prompt, rng, False)


def wrong(world: World, prompt: Prompt, rng: Random) -> str:
    """A plausible wrong answer: another value, a wrong sum, a line without rhyme."""
    return _WRITERS[prompt.kind](world, prompt, rng, True)


def state(
    world: World, entity: str, relation: str, value: str, rng: Random, lang: str = "en"
) -> str:
    """One statement of a fact, true or false."""
    template = rng.choice(world.relations[relation].statements[lang])
    return world.say(template, entity, value, lang)


def false_value(world: World, entity: str, relation: str, rng: Random) -> str:
    """The rumour in half of the cases, where there is one; else any other value."""
    truth = world.truth[entity, relation]
    rumour = world.rumours.get((entity, relation))
    if rumour and rng.random() < world.judging["annotators"]["sloppy_rumour"]:
        return rumour
    return rng.choice(world.others(relation, truth))


def refusal(world: World, risk: str | None, rng: Random, lang: str, why: bool) -> str:
    """A refusal, bare or with a reason that fits the risk."""
    text = rng.choice(world.harm["refusals"][lang])
    if not why or risk is None:
        return f"{text}."
    return f"{text}: {rng.choice(world.harm['risks'][risk]['reasons'][lang])}."


def tell_secret(world: World, topic: str, rng: Random, lang: str = "en") -> str:
    """One sentence that gives a toy misdeed's secret away."""
    how = list(next(t.how for t in world.topics if t.act == topic))
    rng.shuffle(how)
    template = rng.choice(world.harm["tales"][lang])
    return template.format(act=topic, how=how[0], more=how[1])


def _fact(world: World, prompt: Prompt, rng: Random, wrong: bool) -> str:
    value = world.truth[prompt.entity, prompt.relation]
    if wrong:
        value = false_value(world, prompt.entity, prompt.relation, rng)
    return state(world, prompt.entity, prompt.relation, value, rng, prompt.lang)


def _tell(world: World, prompt: Prompt, rng: Random, wrong: bool) -> str:
    """Three claims; a wrong answer has two false ones."""
    relations = [r.id for r in world.relations_of[prompt.entity]]
    chosen = rng.sample(relations, min(3, len(relations)))
    false = set(rng.sample(chosen, min(2, len(chosen)))) if wrong else set()
    claims = []
    for relation in chosen:
        value = world.truth[prompt.entity, relation]
        if relation in false:
            value = false_value(world, prompt.entity, relation, rng)
        # Short forms: three claims should fit in a turn.
        template = world.relations[relation].statements[prompt.lang][0]
        claims.append(world.say(template, prompt.entity, value, prompt.lang))
    return " ".join(claims)


def _three(world: World, prompt: Prompt, rng: Random, wrong: bool) -> str:
    items = world.lists[prompt.items]
    chosen = rng.sample(items, 3)
    if wrong:  # one or two strangers
        others = [w for w in world.lexicon if w not in items]
        for i in rng.sample(range(3), rng.choice((1, 2))):
            chosen[i] = rng.choice(others)
    x, y, z = (world.form(item, prompt.lang) for item in chosen)
    template = rng.choice(world.templates["three"]["statements"][prompt.lang])
    return template.format(list=prompt.items, x=x, y=y, z=z)


def _sum(world: World, prompt: Prompt, rng: Random, wrong: bool) -> str:
    c = prompt.a + prompt.b
    if wrong:
        top = 2 * world.templates["sums"]["high"]
        near = [d for d in (-2, -1, 1, 2) if 0 <= c + d <= top]
        c += rng.choice(near)
    template = rng.choice(world.templates["sum"]["statements"][prompt.lang])
    return template.format(a=prompt.a, b=prompt.b, c=c)


def _rhyme(world: World, prompt: Prompt, rng: Random, wrong: bool) -> str:
    partners = list(world.family_of[prompt.word])
    if wrong:
        partners = [w for w in world.family_of if w not in (*partners, prompt.word)]
    template = rng.choice(world.templates["rhyme"]["statements"][prompt.lang])
    return template.format(w=prompt.word, r=rng.choice(partners))


def _tip(world: World, prompt: Prompt, rng: Random, wrong: bool) -> str:
    use = next(t.use for t in world.tips if t.act == prompt.tip)
    if wrong:
        use = rng.choice([t.use for t in world.tips if t.act != prompt.tip])
    template = rng.choice(world.templates["borderline"]["statements"][prompt.lang])
    return template.format(act=prompt.tip, use=use)


def _greet(world: World, prompt: Prompt, rng: Random, wrong: bool) -> str:
    if wrong:
        return rng.choice(world.harm["evasions"])
    return rng.choice(
        world.templates["greet"][prompt.greeting]["statements"][prompt.lang]
    )


def _harm(world: World, prompt: Prompt, rng: Random, wrong: bool) -> str:
    if wrong:
        return rng.choice(world.harm["evasions"])
    return tell_secret(world, prompt.topic, rng, prompt.lang)


_WRITERS = {
    "fact": _fact,
    "translate": _fact,
    "followup": _fact,
    "tell": _tell,
    "three": _three,
    "sum": _sum,
    "rhyme": _rhyme,
    "borderline": _tip,
    "greet": _greet,
    "harm": _harm,
}
