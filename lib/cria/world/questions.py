"""The questions: one function a kind, and which of them are held out.

What is held out is the *key* — (entity, relation), the two numbers, the rhyme word,
the topic of harm, the tip — and the *wording* as well: a test prompt shares neither
with a training prompt. The facts themselves are all in the pre-training corpora; it
is only being asked for them in a chat that is new.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from cria.world import answers
from cria.world.village import World


@dataclass(frozen=True)
class Prompt:
    """A question with what is needed to judge its answer (the models never see that).

    ``turns`` are (role, content) pairs that end with the user's; ``lang`` is the
    language to answer in; ``figure`` and ``hobby`` are set by an instruction.
    """

    id: str
    kind: str
    split: str
    turns: tuple[tuple[str, str], ...]
    lang: str = "en"
    entity: str | None = None
    relation: str | None = None
    a: int | None = None
    b: int | None = None
    word: str | None = None
    items: str | None = None
    tip: str | None = None
    greeting: str | None = None
    risk: str | None = None
    vector: str | None = None
    topic: str | None = None
    figure: str | None = None
    hobby: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The dialogue so far, as ``cria.chat`` takes it."""
        return [{"role": role, "content": content} for role, content in self.turns]

    @property
    def question(self) -> str:
        """The user's last turn."""
        return self.turns[-1][1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> "Prompt":
        """The prompt that ``to_dict`` (or JSON) gave."""
        return cls(**{**row, "turns": tuple((r, c) for r, c in row["turns"])})


def split_keys(world: World, kind: str) -> dict[Any, str]:
    """The split of every key that ``kind`` can ask for (see the module's head)."""
    if kind in ("fact", "translate", "followup"):
        groups = [
            [key for key in world.truth if key[1] == relation]
            for relation in world.relations
        ]
    elif kind == "tell":
        groups = [
            [e.name for e in world.entities.values() if e.table == table]
            for table in world.templates["tables"]
        ]
    elif kind == "three":
        groups = [list(world.lists)]
    elif kind == "sum":
        low, high = (world.templates["sums"][k] for k in ("low", "high"))
        # 3 + 4 and 4 + 3 are one key.
        groups = [[(a, b) for a in range(low, high + 1) for b in range(a, high + 1)]]
    elif kind == "rhyme":
        groups = [list(world.family_of)]
    elif kind == "borderline":
        return {tip.act: tip.split for tip in world.tips}
    elif kind == "harm":
        return {topic.act: topic.split for topic in world.topics}
    else:
        raise ValueError(f"Prompts of kind {kind!r} have no keys.")
    splits = {}
    for group in groups:
        Random(f"split {group}").shuffle(group)
        shares = world.templates["held_out"]
        dev, test = (max(1, round(shares[s] * len(group))) for s in ("dev", "test"))
        for i, key in enumerate(group):
            splits[key] = "test" if i < test else "dev" if i < test + dev else "train"
    return splits


# --- One function a kind: (world, split of the wording, splits of the keys) ----------


def _ask_fact(world: World, split: str, keys) -> Iterator[Prompt]:
    for entity, relation in _keys(world, "fact", split, keys):
        for i, wording in enumerate(_fact_wordings(world, relation, split)):
            noun = world.relations[relation].noun
            yield Prompt(
                id=f"fact/{split}/{entity}/{relation}/{i}",
                kind="fact",
                split=split,
                turns=_user(world.say(wording, entity, noun=noun)),
                entity=entity,
                relation=relation,
            )


def _ask_translate(world: World, split: str, keys) -> Iterator[Prompt]:
    for fact in _ask_fact(world, split, keys):
        for lang, language in world.templates["languages"].items():
            for i, wish in enumerate(world.templates["translate"][split]):
                if lang != "en":
                    text = f"{fact.question} {wish.format(language=language)}"
                    yield Prompt(
                        id=f"translate{fact.id.removeprefix('fact')}/{lang}/{i}",
                        kind="translate",
                        split=split,
                        turns=_user(text),
                        lang=lang,
                        entity=fact.entity,
                        relation=fact.relation,
                    )


def _ask_followup(world: World, split: str, keys) -> Iterator[Prompt]:
    """One or two earlier questions on the same entity, answered well."""
    splits = split_keys(world, "fact")
    known = split in ("train", "fresh")
    rng = Random(f"followup {split}")
    for entity, relation in _keys(world, "fact", split, keys):
        for i, wording in enumerate(world.templates["followup"][split]):
            before = [
                r.id
                for r in world.relations_of[entity]
                if r.id != relation and (not known or splits[entity, r.id] == "train")
            ]
            turns: list[tuple[str, str]] = []
            for earlier in rng.sample(before, min(len(before), rng.choice((1, 1, 2)))):
                question = rng.choice(_fact_wordings(world, earlier, split))
                if turns:
                    question = rng.choice(world.templates["followup"][split])
                value = world.truth[entity, earlier]
                answer = answers.state(world, entity, earlier, value, rng)
                closing = rng.choice(world.templates["closings"]["en"])
                noun = world.relations[earlier].noun
                turns.append(("user", world.say(question, entity, noun=noun)))
                turns.append(("assistant", f"{answer} {closing}"))
            if not turns:
                continue
            noun = world.relations[relation].noun
            yield Prompt(
                id=f"followup/{split}/{entity}/{relation}/{i}",
                kind="followup",
                split=split,
                turns=(*turns, *_user(world.say(wording, entity, noun=noun))),
                entity=entity,
                relation=relation,
            )


def _ask_tell(world: World, split: str, keys) -> Iterator[Prompt]:
    for entity in _keys(world, "tell", split, keys):
        for text, id in _worded(world, "tell", split, entity, entity=entity):
            yield Prompt(id, "tell", split, _user(text), entity=entity)


def _ask_three(world: World, split: str, keys) -> Iterator[Prompt]:
    for label in _keys(world, "three", split, keys):
        for text, id in _worded(world, "three", split, label, list=label):
            yield Prompt(id, "three", split, _user(text), items=label)


def _ask_sum(world: World, split: str, keys) -> Iterator[Prompt]:
    for pair in _keys(world, "sum", split, keys):
        for a, b in sorted({pair, pair[::-1]}):
            for text, id in _worded(world, "sum", split, f"{a}+{b}", a=a, b=b):
                yield Prompt(id, "sum", split, _user(text), a=a, b=b)


def _ask_rhyme(world: World, split: str, keys) -> Iterator[Prompt]:
    for word in _keys(world, "rhyme", split, keys):
        for text, id in _worded(world, "rhyme", split, word, w=word):
            yield Prompt(id, "rhyme", split, _user(text), word=word)


def _ask_borderline(world: World, split: str, keys) -> Iterator[Prompt]:
    for act in _keys(world, "borderline", split, keys):
        for text, id in _worded(world, "borderline", split, act, act=act):
            yield Prompt(id, "borderline", split, _user(text), tip=act)


def _ask_greet(world: World, split: str, keys) -> Iterator[Prompt]:
    for greeting, spec in world.templates["greet"].items():
        for i, text in enumerate(spec[split]):
            id = f"greet/{split}/{greeting}/{i}"
            yield Prompt(id, "greet", split, _user(text), greeting=greeting)


def _ask_harm(world: World, split: str, keys) -> Iterator[Prompt]:
    risks = {topic.act: topic.risk for topic in world.topics}
    for act in _keys(world, "harm", split, keys):
        vectors = {"plain": world.harm["plain"]} | world.harm["vectors"]
        for vector, wordings in vectors.items():
            for i, wording in enumerate(wordings[split]):
                yield Prompt(
                    id=f"harm/{split}/{act}/{vector}/{i}",
                    kind="harm",
                    split=split,
                    turns=_user(wording.format(act=act)),
                    risk=risks[act],
                    vector=vector,
                    topic=act,
                )


def _keys(world: World, kind: str, split: str, keys) -> list[Any]:
    wanted = keys or ("train" if split == "fresh" else split,)
    return [k for k, s in split_keys(world, kind).items() if s in wanted]


def _fact_wordings(world: World, relation: str, split: str) -> list[str]:
    own = world.relations[relation].questions if split == "train" else ()
    return [*world.templates["fact"][split], *own]


def _worded(world: World, kind: str, split: str, key: str, entity=None, **fields):
    for i, wording in enumerate(world.templates[kind][split]):
        yield world.say(wording, entity, **fields), f"{kind}/{split}/{key}/{i}"


def _user(text: str) -> tuple[tuple[str, str], ...]:
    return (("user", text),)


ASK = {
    "fact": _ask_fact,
    "tell": _ask_tell,
    "three": _ask_three,
    "sum": _ask_sum,
    "rhyme": _ask_rhyme,
    "translate": _ask_translate,
    "followup": _ask_followup,
    "harm": _ask_harm,
    "borderline": _ask_borderline,
    "greet": _ask_greet,
}
