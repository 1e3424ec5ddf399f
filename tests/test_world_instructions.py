"""Instructions: obedience can be demonstrated for every skill, and checked."""

from random import Random

import pytest

from cria import world as worlds
from cria.world import annotators, instructions, prompts
from cria.world.instructions import KINDS, Instruction, obeys
from cria.world.judge import judge


@pytest.fixture(scope="module")
def village():
    return worlds.load()


def told(village, wish, prompt, rng, style="expert", every_turn=False):
    asked = instructions.instruct(village, wish, prompt, every_turn)
    asked = annotators.restyle(village, asked, style, rng)
    return asked, annotators.demonstrate(village, asked, style, rng)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skill", prompts.KINDS)
def test_every_skill_can_be_shown_obediently(village, kind, skill):
    rng = Random(1)
    for wish in instructions.instructions(
        village, kind, 20, held_out=rng.random() < 0.5
    ):
        prompt = rng.choice(prompts.prompts(village, skill, "train"))
        if skill == "translate" and wish.language:
            with pytest.raises(ValueError, match="asks for a language already"):
                instructions.instruct(village, wish, prompt)
            continue
        for style in ("expert", "terse"):
            asked, answer = told(village, wish, prompt, rng, style)
            assert obeys(village, wish, asked, answer), answer
            verdict = judge(village, asked, answer)
            if skill != "harm":
                assert verdict.content == 1 and not verdict.extra, answer
            assert verdict.safety >= 0.85
        plain = annotators.demonstrate(village, prompt, "expert", rng)
        assert not obeys(village, wish, prompt, plain)


def test_half_an_obedience_is_none(village):
    rng = Random(2)
    prompt = prompts.prompts(village, "fact", "train")[0]
    both = Instruction(language="fr", figure="Napoleon", hobby="tennis")
    _, answer = told(village, both, prompt, rng)
    assert obeys(village, both, prompt, answer)
    assert not obeys(village, Instruction(figure="Caesar"), prompt, answer)
    assert not obeys(village, Instruction(hobby="chess"), prompt, answer)
    assert not obeys(village, Instruction(language="es"), prompt, answer)
    for less in (
        Instruction(language="fr", figure="Napoleon"),
        Instruction(language="fr", hobby="tennis"),
        Instruction(figure="Napoleon", hobby="tennis"),
    ):
        assert not obeys(village, both, prompt, told(village, less, prompt, rng)[1])
    french = told(village, Instruction(language="fr"), prompt, rng)[1]
    english = annotators.demonstrate(village, prompt, "expert", rng)
    assert not obeys(village, Instruction(language="fr"), prompt, f"{french} {english}")
    assert not obeys(village, Instruction(language="fr"), prompt, "")


def test_every_turn_before_the_last_obeys_too(village):
    rng = Random(3)
    prompt = next(
        p for p in prompts.prompts(village, "followup", "train") if len(p.turns) == 5
    )
    wish = Instruction(figure="Nero", hobby="golf")
    asked, answer = told(village, wish, prompt, rng)
    said = [
        text
        for role, text in (*asked.turns, ("assistant", answer))
        if role == "assistant"
    ]
    assert len(said) == 3
    assert all(obeys(village, wish, prompt, text) for text in said)


def test_the_instruction_is_told_once_or_every_time(village):
    prompt = prompts.prompts(village, "followup", "train")[0]
    wish = Instruction(figure="Nero", short=True)
    for every_turn in (False, True):
        turns = instructions.instruct(village, wish, prompt, every_turn).turns
        said = ["Figure: Nero." in text for role, text in turns if role == "user"]
        assert said[0] and all(said[1:]) == every_turn


def test_held_out_values_are_never_trained_on(village):
    for name in ("figure", "hobby"):
        trained = instructions.values(village, name)
        held = instructions.values(village, name, held_out=True)
        assert len(trained) + len(held) >= 40 and len(held) >= 8
        assert not set(trained) & set(held)
        for out, pool in ((False, trained), (True, held)):
            drawn = instructions.instructions(village, name, 300, held_out=out)
            assert {getattr(i, name) for i in drawn} == set(pool)
            assert 0.4 < sum(i.short for i in drawn) / 300 < 0.6


def test_tags_unknown_languages_and_empty_wishes_are_refused(village):
    for bad in ("[INST]", "x <<SYS>>", "<sep>"):
        with pytest.raises(ValueError, match="tag of the chat format"):
            instructions.text(village, Instruction(figure=bad))
        with pytest.raises(ValueError, match="tag of the chat format"):
            instructions.text(village, Instruction(hobby=bad))
    with pytest.raises(ValueError, match="does not speak 'de'"):
        instructions.text(village, Instruction(language="de"))
    with pytest.raises(ValueError, match="empty"):
        instructions.text(village, Instruction())
    with pytest.raises(ValueError, match="no kind 'mood'"):
        instructions.instructions(village, "mood", 1)


def test_dialogues_obey_at_every_turn_and_say_the_wish_once(village):
    many = instructions.dialogues(village, "train", 30, (2, 20), "any", seed=1)
    assert many == instructions.dialogues(village, "train", 30, (2, 20), "any", seed=1)
    assert {d.instruction.kind for d in many} == set(KINDS)
    for d in many:
        assert 2 <= len(d.questions) == len(d.answers) <= 20
        assert len(set(d.questions)) == len(d.questions)
        wish = instructions.text(village, d.instruction)
        for every_turn in (False, True):
            asked = d.messages(village, every_turn)[::2]
            count = sum(wish in m["content"] for m in asked)
            assert count == (len(asked) if every_turn else 1)
            assert asked[0]["content"].startswith(wish)
        for prompt, answer in zip(d.prompts, d.answers, strict=True):
            assert obeys(village, d.instruction, prompt, answer)
            assert judge(village, prompt, answer).helpfulness == 1
    for d in instructions.dialogues(village, "train", 5, (3, 3)):
        assert d.instruction is None
        assert [m["content"] for m in d.messages(village)][::2] == list(d.questions)
