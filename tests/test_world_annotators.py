"""Annotators: each style has its faults, and votes are noisy where it is close."""

from collections import Counter
from random import Random

import pytest

from cria import world as worlds
from cria.world import annotators, prompts, sentences
from cria.world.judge import judge

MIX = {"expert": 0.32, "terse": 0.18, "sloppy": 0.25, "rambling": 0.15, "unsafe": 0.10}


@pytest.fixture(scope="module")
def village():
    return worlds.load()


def verdicts(village, style, kinds, n=200):
    asked = [p for k in kinds for p in prompts.prompts(village, k, "train")[:40]]
    told = annotators.demonstrations(village, asked, {style: 1.0}, n, seed=1)
    return [judge(village, d.prompt, d.text) for d in told]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", [k for k in prompts.KINDS if k != "harm"])
def test_the_styles_differ_as_their_names_say(village, kind):
    by = {s: verdicts(village, s, [kind]) for s in annotators.STYLES}
    helpful = {s: mean(v.helpfulness for v in by[s]) for s in by}
    assert helpful["expert"] == helpful["unsafe"] == 1
    assert 0.8 < helpful["terse"] < 0.9  # right, without a closing
    assert not any(v.closing for v in by["terse"])
    assert helpful["sloppy"] < 0.6
    assert helpful["sloppy"] < helpful["rambling"] < 0.9
    assert all(v.extra or v.repeats for v in by["rambling"])


def test_the_sloppy_are_wrong_as_often_as_the_table_says(village):
    by = verdicts(village, "sloppy", ["fact", "sum", "rhyme"], 1200)
    wrong = village.judging["annotators"]["sloppy_wrong"]
    assert mean(v.content == 0 for v in by) == pytest.approx(wrong, abs=0.05)


def test_the_unsafe_comply_and_nobody_else_does(village):
    for style in annotators.STYLES:
        by = verdicts(village, style, ["harm"])
        assert all(v.leaked for v in by) == (style == "unsafe")
        assert any(v.leaked for v in by) == (style == "unsafe")
    assert mean(v.safety for v in verdicts(village, "expert", ["harm"])) == 1
    assert mean(v.safety for v in verdicts(village, "sloppy", ["harm"])) < 0.7


def test_demonstrations_keep_their_shares_and_repeat(village):
    asked = prompts.mixture(village, "train", 700)
    told = annotators.demonstrations(village, asked, MIX, 1000, seed=4)
    assert told == annotators.demonstrations(village, asked, MIX, 1000, seed=4)
    assert told != annotators.demonstrations(village, asked, MIX, 1000, seed=5)
    assert Counter(d.style for d in told) == {s: 1000 * v for s, v in MIX.items()}
    assert [d.prompt.id for d in told[:700]] == [p.id for p in asked]
    assert told[700].prompt.id == asked[0].id
    for d in told:
        assert [m["role"] for m in d.messages[-2:]] == ["user", "assistant"]


def test_earlier_turns_are_written_by_the_same_annotator(village):
    asked = prompts.prompts(village, "followup", "train", 60)
    closings = sentences.closings(village)
    for style, closes in (("terse", False), ("expert", True)):
        for d in annotators.demonstrations(village, asked, {style: 1.0}, 60):
            for m in d.messages:
                if m["role"] == "assistant":
                    last = sentences.bare(sentences.split(m["content"])[-1])
                    assert (last in closings) == closes
    told = annotators.demonstrations(village, asked, {"sloppy": 1.0}, 60)
    truth = [
        village.truth[c.entity, c.relation] == c.value
        for d in told
        for m in d.messages[:-1]
        if m["role"] == "assistant"
        for s in sentences.split(m["content"])
        for c in sentences.claims(village).get(sentences.bare(s), ())
    ]
    assert 0.15 < mean(truth) < 0.5


def test_wrong_arguments_are_refused(village):
    asked = prompts.prompts(village, "fact", "train", 3)
    with pytest.raises(ValueError, match="no style 'lazy'"):
        annotators.demonstrations(village, asked, {"lazy": 1.0}, 3)
    with pytest.raises(ValueError, match="sum to 1"):
        annotators.demonstrations(village, asked, {"expert": 0.5}, 3)
    with pytest.raises(ValueError, match="no prompts"):
        annotators.demonstrations(village, [], {"expert": 1.0}, 3)
    with pytest.raises(ValueError, match="no ground 'harmless'"):
        annotators.compare(village, asked[0], "a", "b", "harmless", Random(0))


def votes(village, gap, ground="helpfulness", n=4000):
    rng = Random(9)
    return [annotators.grade(village, gap, ground, rng) for _ in range(n)]


def test_votes_are_sure_where_it_is_clear_and_a_coin_where_it_is_not(village):
    assert mean(v for v, _ in votes(village, 0.9)) > 0.999
    assert mean(v for v, _ in votes(village, -0.9)) < 0.001
    assert mean(v for v, _ in votes(village, 0.0)) == pytest.approx(0.5, abs=0.03)
    rates = [mean(v for v, _ in votes(village, g)) for g in (0.05, 0.15, 0.3, 0.5)]
    assert rates == sorted(rates) and rates[-1] > rates[0] + 0.2


def test_noise_grows_where_the_answers_are_close(village):
    def spread(gap):  # between the quartiles of how clear it looks, in thresholds
        rules = village.judging["preferences"]
        return sum(1 for _, g in votes(village, gap) if g in rules["grades"])

    # With constant noise a gap of 0 would be graded above "slightly" (0.12) in 42 %.
    beyond = spread(0.0) / 4000
    assert beyond > 0.5


def test_only_the_safety_votes_press_the_wrong_button(village):
    flip = village.judging["preferences"]["flip"]["safety"]
    wrong = mean(1 - v for v, _ in votes(village, 1.0, "safety"))
    assert wrong == pytest.approx(flip, abs=0.015)
    assert mean(1 - v for v, _ in votes(village, 1.0)) == 0


def test_grades_follow_the_distance_and_all_occur(village):
    order = ["negligibly", "slightly", "better", "significantly"]
    means = [
        mean(order.index(g) for _, g in votes(village, gap))
        for gap in (0, 0.25, 0.45, 0.8)
    ]
    assert means == sorted(means)
    rng = Random(10)
    seen, agree = Counter(), Counter()
    for prompt in prompts.mixture(village, "train", 1500):
        a, b = (
            annotators.demonstrate(village, prompt, rng.choice(annotators.STYLES), rng)
            for _ in range(2)
        )
        gap = (
            judge(village, prompt, b).helpfulness
            - judge(village, prompt, a).helpfulness
        )
        if gap:
            best, grade = annotators.compare(village, prompt, a, b, "helpfulness", rng)
            seen[grade] += 1
            agree[grade] += best == (gap > 0)
    assert min(seen.values()) > 0.1 * sum(seen.values()) and len(seen) == 4
    rates = [agree[g] / seen[g] for g in order]
    assert rates == sorted(rates) and rates[-1] > 0.97


def test_compare_sees_that_an_answer_was_cut_off(village):
    prompt = prompts.prompts(village, "fact", "train", 1)[0]
    text = annotators.demonstrate(village, prompt, "expert", Random(0))
    rng = Random(1)
    wins = [
        annotators.compare(
            village, prompt, text, text, "helpfulness", rng, (True, False)
        )
        for _ in range(400)
    ]
    assert mean(v for v, _ in wins) < 0.25
