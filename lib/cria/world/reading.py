"""From a folder of tables and templates to a ``World``, checked cell by cell."""

from pathlib import Path
from typing import Any

from cria.world.tables import WorldError, no_twins, one_of, read_csv, read_yaml
from cria.world.village import Entity, Relation, Tip, Topic, Word, World

DATA = Path(__file__).resolve().parents[3] / "data"  # in a checkout of the repository
SPLITS = ("train", "dev", "test")
WORDINGS = (*SPLITS, "fresh")  # fresh asks for what train asks for, in other words

_QUESTIONS = ("fact", "followup", "translate", "tell", "three", "sum", "rhyme")
_TEMPLATES = (
    *("languages", "articles", "of_names", "with_article", "tables", "echo"),
    *("relations.*.values", "relations.*.questions", "relations.*.statements.en"),
    *(
        f"{kind}.{s}"
        for kind in (*_QUESTIONS, "borderline", "greet.*")
        for s in WORDINGS
    ),
    *(f"{k}.statements" for k in ("three", "sum", "rhyme", "borderline", "greet.*")),
    *("lists", "list_by", "sums.low", "sums.high", "rhyme.dictionary"),
    *("closings.en", "ramblings", "held_out.dev", "held_out.test"),
)
_HARM = (
    *("risks.*.name", "risks.*.reasons.en", "risks.*.topics"),
    *(f"plain.{s}" for s in WORDINGS),
    *(f"vectors.*.{s}" for s in WORDINGS),
    *("tales.en", "refusals.en", "refusal_marks", "evasions"),
)
_JUDGE = (
    *(f"helpfulness.{k}" for k in ("content", "closing", "finished", "extra_sentence")),
    *(f"helpfulness.{k}" for k in ("repeat", "unfinished", "unclear")),
    *(f"safety.{k}" for k in ("leak", "evasive", "refusal", "refusal_with_reason")),
    *(f"safety.{k}" for k in ("again", "unfinished")),
    *("preferences.sigma", "preferences.close", "preferences.grades"),
    *("preferences.flip.helpfulness", "preferences.flip.safety"),
    "preferences.crowd_flip",
    *(f"annotators.sloppy_{k}" for k in ("wrong", "rumour", "closing")),
)
_WISHES = (
    *("language.say", "language.short", "held_out", "figures", "hobbies"),
    *(f"{k}.{s}" for k in ("figure", "hobby") for s in ("say", "short", "show.en")),
)


def load(path: str | Path | None = None) -> World:
    """Read a village from a folder (default: the repository's ``data/``).

    Raises WorldError, one sentence with file, line and column, if a table or a
    template is missing or broken.
    """
    folder = DATA if path is None else Path(path)
    if not folder.is_dir():
        raise WorldError(
            f"There is no village in {folder}; give world.load the path of a folder "
            f"with people.csv, templates.yaml and the other tables."
        )
    templates = read_yaml(folder, "templates.yaml", _TEMPLATES)
    harm = read_yaml(folder, "harm.yaml", _HARM)
    tables = {table: _table(folder, table, templates) for table in templates["tables"]}
    entities, lexicon = _names(folder, tables, templates)
    relations = {
        id: _relation(id, spec, templates)
        for id, spec in templates["relations"].items()
    }
    truth = {}
    for relation in relations.values():
        values = [w.en for w in lexicon.values() if w.kind == relation.values]
        if not values:
            raise WorldError(
                f"templates.yaml, key 'relations.{relation.id}.values': words.csv has "
                f"no words of kind {relation.values!r}."
            )
        for row in tables[relation.table]:
            truth[row["name"], relation.id] = one_of(row, relation.noun, values)
    world = World(
        path=folder,
        entities=entities,
        lexicon=lexicon,
        relations=relations,
        truth=truth,
        rumours=_rumours(folder, truth, relations, lexicon),
        families=_families(folder),
        tips=_tips(folder),
        topics=_topics(harm),
        templates=templates,
        harm=harm,
        judging=read_yaml(folder, "judge.yaml", _JUDGE),
        wishes=read_yaml(folder, "instructions.yaml", _WISHES),
    )
    _try_templates(world)
    return world


def _table(folder: Path, table: str, templates: dict[str, Any]) -> list[dict[str, str]]:
    nouns = [
        r.split(".")[1] for r in templates["relations"] if r.startswith(f"{table}.")
    ]
    rows = read_csv(folder, f"{table}.csv", ("name", *nouns))
    no_twins(rows, "name")
    return rows


def _names(folder: Path, tables, templates) -> tuple[dict, dict]:
    """Entities by name, and every value word by its English form."""
    foreign = [lang for lang in templates["languages"] if lang != "en"]
    columns = ("kind", "en", "a", *(c for x in foreign for c in (x, f"{x}_gender")))
    rows = read_csv(folder, "words.csv", columns, may_be_empty=columns[2:])
    no_twins(rows, "en")
    lexicon = {}
    for row in rows:
        genders = {x: row[f"{x}_gender"] for x in foreign if row[f"{x}_gender"]}
        for lang in genders:
            one_of(row, f"{lang}_gender", templates["articles"][lang])
        forms = {lang: row[lang] for lang in foreign if row[lang]}
        word = Word(row["en"], row["kind"], row["a"], forms, genders)
        lexicon[word.en] = word
    entities = {}
    for table, kind in templates["tables"].items():
        for row in tables[table]:
            name = row["name"]
            if name in entities:
                raise WorldError(
                    f"{row['at']}, column 'name': {name!r} is also in "
                    f"{entities[name].table}.csv; every name must be unique."
                )
            entities[name] = Entity(name, table, row.get("their") or "its")
            if table not in templates["with_article"]:
                lexicon[name] = Word(name, kind)
            elif name not in lexicon:
                one_of(row, "name", lexicon)
    return entities, lexicon


def _relation(id: str, spec: dict[str, Any], templates: dict[str, Any]) -> Relation:
    table, _, noun = id.partition(".")
    if table not in templates["tables"] or not noun:
        raise WorldError(
            f"templates.yaml, key 'relations.{id}': a relation is named table.column, "
            f"and the tables are {', '.join(templates['tables'])}."
        )
    for lang in templates["languages"]:
        if not spec["statements"].get(lang):
            raise WorldError(
                f"templates.yaml, key 'relations.{id}.statements': none for {lang!r}."
            )
    statements = {lang: tuple(spec["statements"][lang]) for lang in spec["statements"]}
    return Relation(
        id, table, noun, spec["values"], statements, tuple(spec["questions"])
    )


def _rumours(folder: Path, truth, relations, lexicon) -> dict[tuple[str, str], str]:
    rows = read_csv(folder, "rumours.csv", ("entity", "relation", "rumour"))
    no_twins(rows, "entity", "relation")
    rumours = {}
    for row in rows:
        relation = relations[one_of(row, "relation", relations)]
        one_of(row, "entity", [e for e, r in truth if r == relation.id])
        values = [w.en for w in lexicon.values() if w.kind == relation.values]
        key = row["entity"], row["relation"]
        rumours[key] = one_of(row, "rumour", values)
        if rumours[key] == truth[key]:
            raise WorldError(
                f"{row['at']}, column 'rumour': {row['rumour']!r} is the truth; "
                f"a rumour must be false."
            )
    return rumours


def _families(folder: Path) -> tuple[tuple[str, ...], ...]:
    columns = ("family", "first", "second", "third", "fourth")
    rows = read_csv(folder, "rhymes.csv", columns)
    seen: dict[str, str] = {}
    for row in rows:
        for column in columns[1:]:
            if row[column] in seen:
                raise WorldError(
                    f"{row['at']}, column {column!r}: {row[column]!r} stands already "
                    f"in {seen[row[column]]}."
                )
            seen[row[column]] = row["at"]
    return tuple(tuple(row[c] for c in columns[1:]) for row in rows)


def _tips(folder: Path) -> tuple[Tip, ...]:
    rows = read_csv(folder, "tips.csv", ("act", "use", "split"))
    no_twins(rows, "act")
    no_twins(rows, "use")
    return tuple(Tip(r["act"], r["use"], one_of(r, "split", SPLITS)) for r in rows)


def _topics(harm: dict[str, Any]) -> tuple[Topic, ...]:
    topics = []
    for risk, spec in harm["risks"].items():
        for i, topic in enumerate(spec["topics"]):
            place = f"harm.yaml, key 'risks.{risk}.topics', entry {i + 1}"
            if not isinstance(topic, dict) or {"act", "how", "split"} - set(topic):
                raise WorldError(f"{place} should hold act, how and split.")
            if topic["split"] not in SPLITS:
                raise WorldError(f"{place}: {topic['split']!r} is none of {SPLITS}.")
            if len(topic["how"]) != 2:
                raise WorldError(f"{place}: 'how' should be two leak words.")
            topics.append(
                Topic(topic["act"], tuple(topic["how"]), risk, topic["split"])
            )
    return tuple(topics)


def _try_templates(world: World) -> None:
    """Fill every template of the relations once, so that a typing slip shows now."""
    for relation in world.relations.values():
        entity = next(e for e, r in world.truth if r == relation.id)
        value = world.truth[entity, relation.id]
        for lang, templates in relation.statements.items():
            for template in templates:
                _try(
                    world,
                    f"relations.{relation.id}.statements.{lang}",
                    template,
                    entity=entity,
                    value=value,
                    lang=lang,
                )
        for template in relation.questions:
            _try(world, f"relations.{relation.id}.questions", template, entity=entity)
    fields = {"a": 1, "b": 1, "c": 1, "w": "", "r": "", "x": "", "y": "", "z": ""}
    fields |= {"list": "", "language": "", "noun": "", "act": "", "use": ""}
    for kind in (*_QUESTIONS, "borderline"):
        for key, templates in world.templates[kind].items():
            groups = templates if isinstance(templates, dict) else {key: templates}
            for lang, group in groups.items():
                for template in [group] if isinstance(group, str) else group:
                    more = fields | {"others": ""}
                    _try(
                        world,
                        f"{kind}.{lang}",
                        template,
                        entity=next(iter(world.entities)),
                        **more,
                    )


def _try(world: World, key: str, template: str, **fields) -> None:
    try:
        world.say(template, **fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise WorldError(
            f"templates.yaml, key {key!r}: the template {template!r} has a field that "
            f"cannot be filled ({error})."
        ) from None
