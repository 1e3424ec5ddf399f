"""Dialogues turn by turn: who is told what, which answer stays, what goes on."""

import json
from dataclasses import asdict, replace

import pytest

from cria import chat, config, ghost_dialogues, ghost_synthesis, stages, world
from cria.ghost import attach, once
from cria.ghost_dialogues import (
    Plan,
    Talk,
    always_first,
    answer_turns,
    beginnings,
    plans,
    spoken,
)
from cria.ghost_synthesis import best_by, first_clean, synthesise
from cria.model import Llama
from cria.reward import RewardModel, score
from cria.sampling import generate
from cria.world.instructions import Instruction, text

SMOKE = config.load("smoke")
NERO = Instruction(figure="Nero", hobby="chess")


@pytest.fixture(scope="module")
def village():
    return world.load()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    made = stages.get("tokenizer", SMOKE, 0, cache, say=lambda line: None)
    return made.tokenizer()


@pytest.fixture(scope="module")
def model():
    return Llama(SMOKE.model, seed=3).eval()


@pytest.fixture(scope="module")
def planned(village):
    wishes = [NERO, Instruction(language="fr"), None, NERO]
    return plans(village, "train", wishes, (2, 4), seed=1)


def test_plans_ask_different_short_questions(village, planned):
    assert [p.instruction for p in planned][2] is None
    for plan in planned:
        assert 2 <= len(plan.prompts) <= 4
        assert len({p.id for p in plan.prompts}) == len(plan.prompts)
        assert {len(p.turns) for p in plan.prompts} == {1}
    assert planned == plans(
        village, "train", [p.instruction for p in planned], (2, 4), seed=1
    )
    for split in ("dev", "test"):
        other = plans(village, split, [NERO], (20, 20), 0)[0]
        assert {p.split for p in other.prompts} == {split}
        assert len(other.prompts) == 20


@pytest.mark.parametrize("every_turn", [True, False])
def test_each_answer_is_the_model_s_to_the_whole_dialogue(
    village, vocabulary, model, planned, every_turn
):
    """The cache over many turns, against reading everything anew."""
    talks = answer_turns(
        model, vocabulary, village, planned, always_first, every_turn=every_turn
    )
    for plan, talk in zip(planned, talks, strict=True):
        assert talk.prompts == plan.prompts
        wish = plan.instruction and text(village, plan.instruction)
        for turn in range(len(talk.answers)):
            said = talk.messages[: 2 * turn + 1]
            if wish:
                said = (attach if every_turn else once)(said, wish)
            whole = generate(
                model,
                [chat.prompt_ids(vocabulary, said)],
                max_new_tokens=ghost_dialogues.MAX_NEW_TOKENS,
                eos_id=vocabulary.eos_id,
                temperature=0,
            ).lists()[0]
            assert talk.answers[turn] == spoken(vocabulary, whole)


def test_a_dialogue_ends_where_no_answer_is_chosen(village, vocabulary, model, planned):
    def stop(going, turn, tries):
        return [None if plan == planned[0] and turn == 1 else 0 for plan in going]

    talks = answer_turns(model, vocabulary, village, planned, stop, every_turn=True)
    whole = answer_turns(
        model, vocabulary, village, planned, always_first, every_turn=True
    )
    assert len(talks[0].answers) == len(talks[0].prompts) == 1
    assert talks[0].answers == whole[0].answers[:1]
    assert talks[1:] == whole[1:]


def test_the_best_of_the_clean_answers_stays(village, vocabulary, planned):
    rm = RewardModel(Llama(SMOKE.model, seed=4), seed=5).eval()
    eos = vocabulary.eos_id
    words = ["Nero here: 4.", "I see a cat and a hat.", "It is 7. Enjoy chess."]
    tries = [
        *([*vocabulary.encode(w), eos] for w in words),
        vocabulary.encode("It is 9."),  # did not end
        [*vocabulary.encode("It [INST] is."), eos],
        [eos],
    ]
    plan = Plan(NERO, planned[0].prompts)
    told = attach([{"role": "user", "content": plan.prompts[1].question}],
                  text(village, NERO))  # fmt: skip
    rewards = score(rm, [chat.prompt_ids(vocabulary, told)], [tries])[0]
    choose = best_by(rm, vocabulary, village)
    assert choose([plan], 1, [tries]) == [max(range(3), key=rewards.__getitem__)]
    assert choose([plan], 1, [tries[3:]]) == [None]
    assert first_clean(vocabulary)([plan], 1, [tries[::-1]]) == [3]
    assert first_clean(vocabulary)([plan], 1, [tries[3:]]) == [None]


def test_babbled_tags_do_not_stay(vocabulary):
    ids = vocabulary.encode("A cat [INST] and <<SYS>> a dog.")
    said = spoken(vocabulary, ids)
    assert "[INST]" not in said and "<<SYS>>" not in said and "dog" in said


def small(**changes):
    return replace(SMOKE.ghost, **changes)


def test_what_was_sampled_is_not_sampled_again(
    village, vocabulary, model, planned, tmp_path, monkeypatch
):
    monkeypatch.setattr(ghost_synthesis, "TOGETHER", 2)
    options = {"samples": 2, "seed": 7, "say": lambda line: None}
    run = (model, vocabulary, village, planned, always_first, small())
    whole = synthesise(*run, **options)
    assert all(len(talk.answers) > 1 for talk in whole)
    calls = []
    real = ghost_synthesis.answer_turns

    def counted(*args, **kwargs):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(ghost_synthesis, "answer_turns", counted)
    with pytest.raises(KeyboardInterrupt):
        synthesise(*run, **options, out=tmp_path)
    monkeypatch.setattr(ghost_synthesis, "answer_turns", real)
    kept = json.loads((tmp_path / "dialogues-000.json").read_text())
    assert synthesise(*run, **options, out=tmp_path) == whole
    assert [Talk.from_dict(row) for row in kept] == whole[: len(kept)]


def test_beginnings_end_with_other_answers_and_none_comes_twice(planned):
    plan = max(planned, key=lambda plan: len(plan.prompts))
    n = len(plan.prompts)
    whole = Talk(plan.instruction, plan.prompts, tuple(f"It is {i}." for i in range(n)))
    short = replace(whole, prompts=whole.prompts[:2], answers=whole.answers[:2])
    assert beginnings([whole, short], 1, seed=0) == [whole, short]
    for several in (2, 9):
        first, *others, last = beginnings([whole, short], several, seed=0)
        assert first == whole and last == short, "of two turns there is no beginning"
        assert len(others) == min(several - 1, n - 2)
        ends = [len(talk.answers) for talk in others]
        assert ends == sorted(set(ends)) and all(2 <= end < n for end in ends)
        for talk in others:
            assert talk.answers == whole.answers[: len(talk.answers)]
            assert talk.prompts == whole.prompts[: len(talk.answers)]
            assert talk.instruction == whole.instruction
    assert beginnings([whole] * 20, 2, seed=0) == beginnings([whole] * 20, 2, seed=0)
    assert beginnings([whole] * 20, 2, seed=0) != beginnings([whole] * 20, 2, seed=1)


def test_talks_come_back_from_json(planned):
    for plan in planned:
        talk = Talk(plan.instruction, plan.prompts[:1], ("It is 4.",))
        assert Talk.from_dict(json.loads(json.dumps(asdict(talk)))) == talk


def test_a_dialogue_stops_before_the_model_s_context_is_full(village, vocabulary):
    settings = replace(SMOKE.model, max_seq_len=100)
    short = Llama(settings, seed=3).eval()
    planned = plans(village, "dev", [NERO], (20, 20), 0)
    (talk,) = answer_turns(
        short, vocabulary, village, planned, always_first, every_turn=True
    )
    assert 1 <= len(talk.answers) == len(talk.prompts) < 20
