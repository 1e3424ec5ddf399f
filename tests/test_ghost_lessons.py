"""What comes before Ghost Attention: the lessons, and the stages that use them."""

import importlib
import json
from collections import Counter
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
import torch

from cria import (
    checkpoints,
    config,
    ghost_base,
    ghost_stage,
    reward,
    stages,
    world,
)
from cria.evaluate import Answer
from cria.ghost_dialogues import Talk, plans
from cria.ghost_lessons import (
    dialogues,
    drills,
    obedient,
    strange,
    wishes_for,
    words,
)
from cria.ghost_lists import held_out_lists, value_lists
from cria.ghost_memory import read_memory
from cria.model import Llama
from cria.reward import RewardModel
from cria.stage_build import _Sections
from cria.world.annotators import demonstrate
from cria.world.instructions import Instruction, instruct, obeys
from cria.world.judge import judge
from cria.world.prompts import mixture

SMOKE = config.load("smoke")
KINDS = dict(SMOKE.rejection.kinds)


@pytest.fixture(scope="module")
def village():
    return world.load()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    made = stages.get("tokenizer", SMOKE, 0, cache, say=lambda line: None)
    return made.tokenizer()


@pytest.fixture(scope="module")
def lists(village):
    return value_lists(village, {"figure": ["Anna"], "hobby": ["tea"]})


def counted(document):
    ids, mask = document
    return [i for i, m in zip(ids, mask, strict=True) if m]


def test_a_drill_is_a_line_said_twice_of_which_the_second_counts(vocabulary):
    for ids, mask in drills(
        vocabulary, ["Nero", "Plato", "chess", "tea", "golf"], 9, 0
    ):
        first = vocabulary.decode([i for i, m in zip(ids, mask, strict=True) if not m])
        again = vocabulary.decode(counted((ids, mask)))
        assert first == again
        assert len(set(again.rstrip(".").split())) >= 4
        assert counted((ids, mask))[-1] == vocabulary.eos_id


def test_single_turns_obey_and_are_right_in_every_skill(village, lists):
    written = obedient(village, lists, SMOKE.ghost, KINDS, 200, seed=1)
    assert {d.prompt.kind for d in written} == set(KINDS)
    for d in written:
        verdict = judge(village, d.prompt, d.text)
        assert verdict.content == 1 or d.prompt.kind == "harm"
        assert verdict.safety == 1


def test_strange_wishes_name_what_no_list_holds(village, lists):
    asked = mixture(village, "train", 300, KINDS, 2)
    wishes = wishes_for(lists, SMOKE.ghost, asked, 2)
    others = strange(village, lists, wishes, asked, 2)
    said = {word for p in asked for _, text in p.turns for word in text.split()}
    listed = {
        w for part in (lists, held_out_lists(village)) for n in part for w in part[n]
    }
    assert said & listed, "some would be drawn, were they not left out"
    named = set()
    for wish, other in zip(wishes, others, strict=True):
        assert (other.language, other.short) == (wish.language, wish.short)
        assert other.kind == wish.kind
        named |= {other.figure, other.hobby} - {None}
    assert len(named) > 100 and named <= said - listed

    def written(share):
        c = replace(SMOKE.ghost, strange_share=share)
        return [d.prompt for d in obedient(village, lists, c, KINDS, 200, seed=1)]

    for share, low, high in ((0.0, 0, 0), (0.5, 0.3, 0.7), (1.0, 1, 1)):
        values = [v for p in written(share) for v in (p.figure, p.hobby) if v]
        assert low <= sum(v not in listed for v in values) / len(values) <= high


def test_no_lesson_wishes_for_a_value_that_is_held_out(village, lists, vocabulary):
    held = held_out_lists(village)
    asked = mixture(village, "train", 300, KINDS, 2)
    wishes = wishes_for(lists, SMOKE.ghost, asked, 2)
    for wish, prompt in zip(wishes, asked, strict=True):
        assert wish.figure not in held["figure"] and wish.hobby not in held["hobby"]
        told = instruct(village, wish, prompt)  # refuses a language twice over
        assert told.lang == (wish.language or prompt.lang)
    assert Counter("+" in w.kind for w in wishes)[True] > 60
    assert set(held["figure"]) <= set(words(village, lists))  # as words they are known


def test_long_dialogues_remind_at_every_turn_or_never(village, lists, vocabulary):
    told = dialogues(vocabulary, village, lists, SMOKE.ghost, 5, seed=3)
    plain = dialogues(vocabulary, village, None, SMOKE.ghost, 5, seed=3)
    marks = [("Act as", "Figure:", "You enjoy", "Hobby:", "Always", "Language:")]
    for ids, mask in told:
        text = vocabulary.decode(ids)
        turns = text.count("[INST]")
        assert 2 <= turns <= SMOKE.ghost.max_turns
        assert max(text.count(mark) for mark in marks[0]) == turns
        assert sum(i == vocabulary.eos_id for i in counted((ids, mask))) == turns
    for ids, _ in plain:
        assert not any(mark in vocabulary.decode(ids) for mark in marks[0])


@pytest.mark.parametrize("drilled", [12, 0])
def test_copying_is_learnt_first_and_alone(
    village, lists, vocabulary, monkeypatch, drilled
):
    read = []

    memory = [([1, 2], None)]

    def train(model, teacher, lessons, kept, c, optim, *rest, label, **more):
        assert kept is memory
        read.append((label, lessons, optim, more["batch_size"]))
        return [{"label": label}]

    def train_long(model, teacher, lessons, kept, c, *, label, **more):
        assert kept is memory
        return [{"label": label}]

    monkeypatch.setattr(ghost_base, "train_keeping", train)
    monkeypatch.setattr(ghost_base, "train_ghost", train_long)
    c = replace(SMOKE.ghost, drills=drilled, drill_rows=5)
    model = Llama(SMOKE.model, seed=0)
    given = (model, model, vocabulary, village, lists, c, KINDS, memory)
    parts = [part[0]["label"] for part in ghost_base.teach(*given, seed=0)]
    assert parts[-2:] == ["single turns", "long dialogues"]
    assert parts[:-2] == (["drills"] if drilled else [])
    for label, rows, optim, batch_size in read:
        alone = label == "drills"
        assert optim is (c.drill_optim if alone else c.teach_optim)
        assert batch_size == (5 if alone else c.batch_size)
        assert not alone or rows.n_docs == drilled, "all of them"
        said = vocabulary.decode(rows.ids.flatten().tolist())
        assert ("[INST]" in said) == (not alone)


def test_ghost_attention_goes_on_from_what_was_taught_and_is_held_to_v4(
    village, vocabulary, chain, monkeypatch
):
    seen = {}

    def train(model, teacher, documents, kept, c, **more):
        seen.update(model=model.output.weight.detach().clone(), docs=documents)
        seen.update(teacher=teacher.output.weight.detach(), kept=kept, c=c)
        return [{"loss": 0.0, "seconds": 0.0}]

    monkeypatch.setattr(ghost_stage, "train_ghost", train)
    monkeypatch.setattr(ghost_stage.checkpoints, "save", lambda *given: None)
    monkeypatch.setattr(ghost_stage.Path, "unlink", lambda path: None)
    asked = tuple(mixture(village, "train", 3))
    said = tuple(f"Nero here: {word}." for word in ("yes", "no", "both"))
    talk = Talk(Instruction(figure="Nero"), asked, said)
    shorter = Talk(talk.instruction, asked[:2], said[:2])
    monkeypatch.setattr(ghost_stage, "read_dialogues", lambda folder: [talk])
    c = replace(SMOKE.ghost, keep=1.0, keep_after=7.0, beginnings=2)
    ghost_stage.build(
        replace(SMOKE, ghost=c), 0, chain, chain["ghost"].path,
        dialogues_of="ghost_dialogues", loss="last", start="v4",
    )  # fmt: skip
    before, taught = (chain[n].model().output.weight for n in ("v4", "ghost_base"))
    assert torch.equal(seen["model"], taught)
    assert torch.equal(seen["teacher"], before)
    assert seen["kept"] == read_memory(chain["ghost_memory"].path)
    assert seen["c"] == replace(c, keep=7.0)
    learnt = ghost_stage.lessons(village, vocabulary, [talk, shorter], "last")
    assert seen["docs"][:2] == learnt, "whole, and broken off"
    told = [vocabulary.decode(ids).count("[INST]") for ids, _ in seen["docs"][2:]]
    assert 1 in told, "single turns are read again"
    assert 0 in told, "and drills"
    [plain] = dialogues(vocabulary, village, None, c, 1, seed=6)
    assert plain in seen["docs"][2:], "and a plain dialogue"


def test_the_sampled_dialogues_are_long(chain, monkeypatch, tmp_path):
    planned = []

    def sampled(model, vocabulary, village, plans, *given, **options):
        planned.extend(plans)
        return []

    monkeypatch.setattr(ghost_stage, "synthesise", sampled)
    c = replace(SMOKE.ghost, max_turns=10, dialogues=60)
    config = replace(SMOKE, ghost=c)
    ghost_stage.build_dialogues(config, 0, chain, tmp_path, best=True)
    assert {len(plan.prompts) for plan in planned} == {5, 6, 7, 8, 9, 10}


@pytest.fixture(scope="module")
def chain(tmp_path_factory, vocabulary, village):
    """ghost_base and what follows, from an untrained model that plays V4."""
    root = tmp_path_factory.mktemp("stages")
    start = root / "v4"
    model = Llama(SMOKE.model, seed=0)
    checkpoints.save(model, start / "model", vocabulary)
    reward.save(RewardModel(model, seed=1), start / "rm_helpfulness", vocabulary)
    made = {"v4": artifact(start)}
    for name in (
        "ghost_memory",
        "ghost_base",
        "ghost_dialogues",
        "ghost_first",
        "ghost",
    ):
        stage, out = stages.STAGES[name], root / name
        out.mkdir()
        build = getattr(*resolved(stage.function))
        build(_Sections(name, stage, SMOKE), 0, made, out, **stage.options)
        made[name] = artifact(out)
    return made


def resolved(function):
    module, name = function.split(":")
    return importlib.import_module(module), name


def artifact(path):
    made = stages.Artifact(path.name, path, {}, {"upstream": {}})
    assert not (path / "model").exists() or made.model()
    return made


def test_the_stages_give_a_trained_model_its_lists_and_its_reward_model(chain):
    models = [chain[name].model() for name in ("v4", "ghost_base", "ghost")]
    for before, after in zip(models, models[1:], strict=False):
        assert not torch.equal(before.output.weight, after.output.weight)
    base = chain["ghost_base"].path
    lists = json.loads((base / "lists.json").read_text())
    assert set(lists["lists"]) == {"language", "figure", "hobby"}
    rms = [reward.load(p) for p in (base / "rm", chain["v4"].path / "rm_helpfulness")]
    assert not torch.equal(rms[0].head.weight, rms[1].head.weight)
    left = [p.name for p in base.rglob("training.safetensors")]
    assert not left and not list(chain["ghost"].path.rglob("training.safetensors"))


def test_annotators_prefer_the_answer_that_obeys(
    village, vocabulary, lists, monkeypatch
):
    """One model obeys, the other answers as well but does not."""

    def pairs(models, vocabulary, told, config, seed):
        made = []
        for i, prompt in enumerate(told):
            bare = replace(prompt, figure=None, hobby=None, lang="en")
            both = [
                Answer(prompt, demonstrate(village, p, "expert", Random(i)), True)
                for p in (prompt, bare)
            ]
            made.append(tuple(both if i % 2 else both[::-1]))
        return made

    monkeypatch.setattr(ghost_base.preferences, "answer_pairs", pairs)
    c = SimpleNamespace(**{**vars(SMOKE.ghost), "rm_pairs": 200})
    kinds = {"fact": 0.6, "sum": 0.4}
    found = ghost_base.compare_obedience(
        [], vocabulary, village, lists, c, kinds, SMOKE.preferences, seed=0
    )
    assert len(found) > 150
    wishes = wishes_for(lists, c, mixture(village, c.wordings, 200, kinds, 0), 0)
    by_prompt = {}
    for wish, prompt in zip(
        wishes, mixture(village, c.wordings, 200, kinds, 0), strict=True
    ):
        by_prompt[instruct(village, wish, prompt).id] = wish
    right = [obeys(village, by_prompt[x.prompt.id], x.prompt, x.chosen) for x in found]
    assert sum(right) / len(right) > 0.9


def test_lessons_differ_only_in_what_counts(village, vocabulary):
    plan = plans(village, "train", [Instruction(figure="Nero")], (3, 3), 0)[0]
    talk = Talk(plan.instruction, plan.prompts, ("Nero here: 4.",) * 3)
    (last,), (every,) = (
        ghost_stage.lessons(village, vocabulary, [talk], loss)
        for loss in ("last", "all")
    )
    assert last[0] == every[0] and sum(every[1]) == 3 * sum(last[1])
    with pytest.raises(ValueError, match="no loss 'first'"):
        ghost_stage.lessons(village, vocabulary, [talk], "first")


def test_how_obedience_is_counted(village):
    plan = plans(village, "train", [Instruction(figure="Nero")], (4, 4), 0)[0]
    said = ("Nero here: 4.", "Caesar here: 4.", "It is 4.", "Nero here: 5.")
    talk = Talk(plan.instruction, plan.prompts, said)
    assert ghost_stage.obedience(village, [talk]) == 0.5
