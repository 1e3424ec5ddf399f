"""The village: who lives there, what is true, what is rumoured, and how to say it.

``cria.world.load()`` fills the frozen ``World`` from tables and templates. Nothing
about this village is written in Python: swap the folder and you have another one.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

WORD = re.compile(r"[^\W_]+")
_NO_TEXT = {  # keys of the YAML files whose values are settings, not sentences
    *("languages", "articles", "of_names", "with_article", "tables"),
    *("lists", "values", "name", "topics", "refusal_marks"),
}


@dataclass(frozen=True)
class Entity:
    """Somebody or something with facts: ``table`` is people, towns or animals."""

    name: str
    table: str
    their: str = "its"


@dataclass(frozen=True)
class Word:
    """A value: its English form, and its form and gender in the other languages.

    ``kind`` says what it is a value of (animal, job, town, ...).
    """

    en: str
    kind: str
    a: str = ""
    forms: dict[str, str] = field(default_factory=dict)
    genders: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Relation:
    """One column of a table, as ``people.job``; statements by language."""

    id: str
    table: str
    noun: str
    values: str  # the kind of its values
    statements: dict[str, tuple[str, ...]]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Tip:
    """A harmless how-to whose verb sounds like harm: "beat the eggs" → "forks"."""

    act: str
    use: str
    split: str


@dataclass(frozen=True)
class Topic:
    """A toy misdeed; ``how`` are its two leak words."""

    act: str
    how: tuple[str, str]
    risk: str
    split: str


@dataclass(frozen=True, eq=False)
class World:
    """Everything there is to know. Two worlds are equal only if they are one."""

    path: Path
    entities: dict[str, Entity]
    lexicon: dict[str, Word]
    relations: dict[str, Relation]
    truth: dict[tuple[str, str], str]  # (entity, relation) -> value
    rumours: dict[tuple[str, str], str]  # the same, false, for half of the facts
    families: tuple[tuple[str, ...], ...]  # of words that rhyme
    tips: tuple[Tip, ...]
    topics: tuple[Topic, ...]
    templates: dict[str, Any]  # templates.yaml
    harm: dict[str, Any]  # harm.yaml
    judging: dict[str, Any]  # judge.yaml
    wishes: dict[str, Any]  # instructions.yaml

    def __repr__(self) -> str:
        return f"World({len(self.entities)} entities, {len(self.truth)} facts)"

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes, English first: ("en", "fr", "es")."""
        return tuple(self.templates["languages"])

    @cached_property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """The values of every kind: ``world.kinds["job"]``."""
        kinds: dict[str, list[str]] = {}
        for word in self.lexicon.values():
            kinds.setdefault(word.kind, []).append(word.en)
        return {kind: tuple(words) for kind, words in kinds.items()}

    @cached_property
    def relations_of(self) -> dict[str, tuple[Relation, ...]]:
        """The relations of every entity."""
        return {
            e.name: tuple(r for r in self.relations.values() if r.table == e.table)
            for e in self.entities.values()
        }

    @cached_property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """What "three ..." can be asked of: ``world.lists["people in Brill"]``."""
        lists = {
            label: self.kinds[kind] for label, kind in self.templates["lists"].items()
        }
        for relation, template in self.templates["list_by"].items():
            for value in self.kinds[self.relations[relation].values]:
                members = tuple(
                    e
                    for (e, r), v in self.truth.items()
                    if r == relation and v == value
                )
                if len(members) >= 3:
                    lists[template.format(v=value)] = members
        return lists

    @cached_property
    def family_of(self) -> dict[str, tuple[str, ...]]:
        """The other words of a word's rhyme family."""
        return {
            word: tuple(w for w in family if w != word)
            for family in self.families
            for word in family
        }

    def form(self, value: str, lang: str) -> str:
        """A value in a language; names and sounds stay as they are."""
        return self.lexicon[value].forms.get(lang, value)

    def others(self, relation: str, *known: str) -> tuple[str, ...]:
        """The values the relation could have had besides ``known``."""
        values = self.kinds[self.relations[relation].values]
        return tuple(v for v in values if v not in known)

    def say(
        self,
        template: str,
        entity: str | None = None,
        value: str | None = None,
        lang: str = "en",
        **more: object,
    ) -> str:
        """Fill a template's fields (see the head of templates.yaml)."""
        if entity is not None:
            more |= self._entity_forms[entity, lang]
        if value is not None:
            more |= self._value_forms[value, lang]
        return template.format(**more)

    def state(
        self, entity: str, relation: str, value: str, lang: str = "en"
    ) -> list[str]:
        """Every way to state a fact (true or false) in a language."""
        templates = self.relations[relation].statements[lang]
        return [self.say(t, entity, value, lang) for t in templates]

    def words(self) -> tuple[str, ...]:
        """Every word and number of the village, for a tokenizer of whole words."""
        found = {word for text in self._texts() for word in WORD.findall(text)}
        top = 2 * self.templates["sums"]["high"]
        return tuple(sorted(found | {str(i) for i in range(top + 1)}))

    @cached_property
    def _value_forms(self) -> dict[tuple[str, str], dict[str, str]]:
        forms = {}
        for word in self.lexicon.values():
            for lang in self.languages:
                here = self.form(word.en, lang)
                row = {"v": here, "a_v": here, "the_v": here, "of_v": here}
                if lang == "en":
                    row |= {"a_v": f"{word.a} {here}".strip(), "the_v": f"the {here}"}
                elif lang in word.genders:
                    articles = self.templates["articles"][lang][word.genders[lang]]
                    row |= {f"{k}_v": f"{articles[k]} {here}" for k in articles}
                else:
                    row["of_v"] = f"{self.templates['of_names'][lang]} {here}"
                forms[word.en, lang] = row
        return forms

    @cached_property
    def _entity_forms(self) -> dict[tuple[str, str], dict[str, str]]:
        forms = {}
        for name, entity in self.entities.items():
            for lang in self.languages:
                value = self._value_forms[name, lang]
                common = entity.table in self.templates["with_article"]
                e = value["the_v"] if common else value["v"]
                forms[name, lang] = {
                    "e": e,
                    "E": e[0].upper() + e[1:],
                    "of_e": value["of_v"],
                    "their": entity.their,
                }
        return forms

    def _texts(self) -> Iterator[str]:
        """Everything that can be said, with the fields of templates taken out."""
        for forms in (*self._entity_forms.values(), *self._value_forms.values()):
            yield from forms.values()
        yield from (w for family in self.families for w in family)
        for tip in self.tips:
            yield from (tip.act, tip.use)
        for topic in self.topics:
            yield from (topic.act, *topic.how)
        yield from (relation.noun for relation in self.relations.values())
        yield from self.lists
        names = [n for code, n in self.templates["languages"].items() if code != "en"]
        yield from names
        for tree in (self.templates, self.harm, self.wishes):
            for text in _leaves(tree, skip=_NO_TEXT):
                yield re.sub(r"\{\w+\}", " ", text)


def _leaves(tree: Any, skip: Iterable[str]) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for key, branch in tree.items():
            if key not in skip:
                yield from _leaves(branch, skip)
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from _leaves(branch, skip)
