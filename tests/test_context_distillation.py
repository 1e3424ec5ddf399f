"""Context distillation: what is learnt never holds the pre-prompt."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_safety_scaling import PROFILE, SHAPE, SMOKE, VILLAGE, without
from test_safety_scaling import upstream as upstream  # the fixture

from cria import chat, checkpoints, reward, side_by_side, stages
from cria import context_distillation as distillation
from cria.context_distillation import ANSWERS, arms, as_sample, drawn, lesson
from cria.evaluate import SAFETY
from cria.model import Llama
from cria.selection import Sample
from cria.stage_build import _Sections
from cria.world.judge import judge
from cria.world.prompts import prompts

SAFE = PROFILE.safety


def section(name):
    stage = stages.STAGES[name]
    return _Sections(name, stage, PROFILE), stage.needs


@pytest.fixture(scope="module")
def more(upstream, tmp_path_factory):
    """The stages before, with the model without safety data as they keep it."""
    root = tmp_path_factory.mktemp("more")
    words = upstream["words"]
    checkpoints.save(Llama(SHAPE, seed=2), root / "scaling" / "model", words)
    made = upstream | {"safety_scaling": SimpleNamespace(path=root / "scaling")}
    sections, needs = section("pre_prompted")
    out = root / "taught"
    metrics = distillation.build_taught(
        sections, 0, {name: made[name] for name in needs}, out
    )
    return made | {"pre_prompted": SimpleNamespace(path=out), "taught": metrics}


def test_the_pre_prompt_stands_where_it_should_in_the_lesson():
    big = replace(SAFE, lesson=60, lesson_harm=0.8)
    before, plain = lesson(VILLAGE, big, SMOKE.sft.kinds, 0)
    assert len(before) == len(plain) == 60
    assert all(d.prompt.turns[0][1].startswith(big.pre_prompt) for d in before)
    assert not any(big.pre_prompt in text for d in plain for _, text in d.prompt.turns)
    harm = [d for d in before if d.prompt.kind == SAFETY]
    assert len(harm) == 48
    assert all(judge(VILLAGE, d.prompt, d.text).refused for d in harm)
    others = [d for d in (*before, *plain) if d.prompt.kind != SAFETY]
    assert len(others) == 72, "without the pre-prompt nobody is shown a refusal"
    assert not any(judge(VILLAGE, d.prompt, d.text).refused for d in others)
    assert not any(d.prompt.kind == "borderline" for d in before)
    assert {d.prompt.split for d in (*before, *plain)} == {"train"}
    assert lesson(VILLAGE, big, SMOKE.sft.kinds, 0) == (before, plain)


def test_a_lesson_may_be_all_of_harm():
    before, _ = lesson(VILLAGE, replace(SAFE, lesson_harm=1.0), SMOKE.sft.kinds, 0)
    assert {d.prompt.kind for d in before} == {SAFETY}


def test_a_demonstration_is_learnt_from_its_answer_and_eos_alone(upstream):
    words = upstream["words"]
    for d in lesson(VILLAGE, SAFE, SMOKE.sft.kinds, 0)[1]:
        sample = as_sample(words, d)
        prompt = chat.prompt_ids(words, d.prompt.messages)
        ids, _ = chat.encode_dialog(words, d.messages)
        assert [*prompt, *sample.ids] == ids and sample.ids[-1] == words.eos_id
        assert words.decode(list(sample.ids)).strip() == d.text


def test_its_own_answers_to_harm_without_the_pre_prompt_are_in_the_lesson(
    more, tmp_path, monkeypatch
):
    learnt = []
    monkeypatch.setattr(
        distillation,
        "fine_tune",
        lambda model, words, lessons, *a, **o: learnt.extend(lessons) or [{"loss": 0}],
    )
    sections, needs = section("pre_prompted")
    distillation.build_taught(sections, 0, {n: more[n] for n in needs}, tmp_path)
    harm = [s for s in learnt if s.prompt.kind == SAFETY]
    with_it = [s for s in harm if SAFE.pre_prompt in s.prompt.turns[0][1]]
    plain = [s for s in harm if s not in with_it]
    assert [s.prompt.id for s in plain] == [s.prompt.id for s in with_it]
    assert more["taught"]["own_answers"] == len(plain) > 0
    words = more["words"]
    # an untrained model's own answers, not the experts'
    assert not any(
        judge(VILLAGE, s.prompt, words.decode(list(s.ids))).refused for s in plain
    )
    assert all(
        judge(VILLAGE, s.prompt, words.decode(list(s.ids))).refused for s in with_it
    )


def test_the_model_reads_the_pre_prompt_and_nobody_else(upstream, monkeypatch):
    words, read, scored = upstream["words"], [], []
    generate, score = distillation.generate, reward.score
    monkeypatch.setattr(
        distillation,
        "generate",
        lambda m, ids, **o: read.extend(ids) or generate(m, ids, **o),
    )
    monkeypatch.setattr(
        reward, "score", lambda rm, ids, a: scored.extend(ids) or score(rm, ids, a)
    )
    asked = prompts(VILLAGE, "sum", "train", 3)
    model = checkpoints.load(upstream["base"].path / "model")
    rm = reward.load(upstream["rm_safety"].path)
    common = {"round": 2, "seed": 1, "max_new_tokens": 5}
    found = drawn(model, words, asked, rm, pre_prompt="Stay calm.", **common)
    assert all("Stay calm." in words.decode(ids) for ids in read)
    assert scored == [chat.prompt_ids(words, p.messages) for p in asked]
    assert [s.prompt for s in found] == asked and {s.round for s in found} == {2}
    assert len({s.score for s in found}) == 3
    read.clear()
    drawn(model, words, asked, rm, **common)
    assert read == scored[: len(asked)]


def sampled(scores, round):
    kinds = ("harm", "harm", "borderline", "sum")
    asked = [prompts(VILLAGE, k, "train")[i] for i, k in enumerate(kinds)]
    pairs = zip(asked, scores, strict=True)
    return [Sample(p, (round, i), round, r) for i, (p, r) in enumerate(pairs)]


def test_what_each_arm_learns_from():
    original = sampled((0.0, 2.0, 1.0, 1.0), 0)
    another = sampled((5.0, 1.0, 9.0, 9.0), 1)
    distilled = sampled((3.0, 1.0, 4.0, 0.0), 2)
    found = arms(original, another, distilled)
    kept = {name: [s.round for s in several] for name, several in found.items()}
    assert kept == {
        "everywhere": [2, 2, 2, 2],
        "where preferred": [2, 0, 2, 0],
        "paper's recipe": [2, 0, 0, 0],
        "no pre-prompt": [1, 0, 0, 0],
    }
    ids = [[s.prompt.id for s in several] for several in found.values()]
    assert all(i == ids[0] for i in ids)


def test_an_answer_that_is_only_as_good_is_not_kept():
    original, distilled = sampled((1.0,) * 4, 0), sampled((1.0,) * 4, 2)
    found = arms(original, original, distilled)
    assert found["where preferred"] == found["paper's recipe"] == original


def test_the_arms_of_the_stage_differ_in_their_lessons_alone(
    more, tmp_path, monkeypatch
):
    jobs = {}
    monkeypatch.setattr(side_by_side, "run", lambda f, given: jobs.update(given) or {})
    sections, needs = section("distilled_context")
    made = distillation.build(sections, 0, {n: more[n] for n in needs}, tmp_path)
    first = jobs["before"]
    for job in jobs.values():
        changes = ("lessons", "pre_prompt")
        assert without(job, *changes) == without(first, *changes)
    assert first["look"].split == "test"
    assert jobs["with the pre-prompt"]["pre_prompt"] == SAFE.pre_prompt
    assert not jobs["before"]["lessons"] and not jobs["with the pre-prompt"]["lessons"]
    taught = [job["lessons"] for job in jobs.values() if job["lessons"]]
    assert len(taught) == 4 and {len(several) for several in taught} == {SAFE.distilled}
    for several in taught:
        assert not any("pre_prompt" in job for job in jobs.values() if
                       job["lessons"] is several)  # fmt: skip
        assert not any(SAFE.pre_prompt in s.prompt.turns[0][1] for s in several)
        assert {s.prompt.split for s in several} == {"train"}
    rows = json.loads((tmp_path / ANSWERS).read_text("utf-8"))
    assert made["prompts"] == len(rows) == SAFE.distilled
    everywhere = jobs["everywhere"]["lessons"]
    words = more["words"]
    assert [r["distilled"] for r in rows] == [
        words.decode(list(s.ids)).strip() for s in everywhere
    ]
    seen = distillation.arm(**jobs["paper's recipe"])
    assert len(seen["kind"]) == len(seen["r_safety"]) > 0
    assert seen == distillation.arm(**jobs["paper's recipe"])
    assert seen != distillation.arm(**jobs["everywhere"])
