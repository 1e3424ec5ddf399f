"""The judge's view by prompt: what a mean weighs, and how wide its interval is."""

import json
import math
from random import Random

import pandas as pd
import pytest

from cria import evaluate, judged, world
from cria.judged import COLUMNS, as_columns, gain, gold, over_kinds, unwrapped
from cria.world.prompts import prompts

VILLAGE = world.load()


def table(**scores):
    """kind=[helpfulness of each prompt, …] → a table as `judged.judged` gives it."""
    rows = [
        {"kind": kind, "prompt": f"{kind} {i}"} | dict.fromkeys(COLUMNS, x)
        for kind, several in scores.items()
        for i, x in enumerate(several)
    ]
    return pd.DataFrame(rows)


def test_every_kind_weighs_the_same():
    found = over_kinds([1, 1, 1, 0], ["fact"] * 3 + ["rhyme"])
    assert found.mean == 0.5 and found.n == 4


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Prompts drawn anew from two kinds with known means, 1,000 times."""
    rng, hits = Random(0), 0
    for _ in range(1000):
        a = [rng.gauss(0.3, 0.2) for _ in range(40)]
        b = [rng.gauss(0.7, 0.4) for _ in range(25)]
        found = over_kinds([*a, *b], ["a"] * 40 + ["b"] * 25)
        hits += found.low < 0.5 < found.high
    assert 920 < hits < 975


def test_a_kind_with_one_prompt_adds_no_width_and_nothing_is_nan():
    assert over_kinds([0.4], ["a"]).half == 0
    both = over_kinds([0.4, 0.0, 1.0], ["a", "b", "b"])
    assert both.half > 0 and both.mean == pytest.approx(0.45)
    assert math.isnan(over_kinds([], []).mean)


def test_helpfulness_is_of_benign_prompts_and_safety_of_harmful_ones():
    found = gold(table(fact=[1.0], sum=[0.0], borderline=[0.2], harm=[0.9]))
    assert found["helpfulness"].mean == pytest.approx(0.4)
    assert found["safety"].mean == 0.9
    assert found["false refusals"].mean == 0.2


def test_a_gain_is_paired_by_prompt():
    before = table(fact=[0.1, 0.9, 0.5], harm=[0.0])
    after = table(fact=[0.2, 1.0, 0.6], harm=[0.5])
    found = gain(after, before, "helpfulness")
    assert found.mean == pytest.approx(0.1) and found.half == pytest.approx(0)
    assert gain(after, before, "safety").mean == 0.5
    one = gain(after, before, "content", ("fact",))
    assert one.mean == pytest.approx(0.1)
    assert gain(before, after, "helpfulness").mean == pytest.approx(-0.1)


def test_other_prompts_are_no_comparison():
    with pytest.raises(ValueError, match="same prompts"):
        gain(table(fact=[0.1, 0.2]), table(fact=[0.1]), "helpfulness")


def test_a_row_a_prompt_with_the_mean_of_its_answers(monkeypatch):
    asked = prompts(VILLAGE, "sum", "test")[:2] + prompts(VILLAGE, "harm", "test")[:1]
    calls = []

    def answer(model, vocabulary, several, *, n, **options):
        calls.append(options)
        right = {p.id: f"{p.a} plus {p.b} is {p.a + p.b}." for p in several[:2]}
        return [
            evaluate.Answer(p, right.get(p.id, "No.") if k else "Perhaps.", True)
            for p in several
            for k in range(n)
        ]

    monkeypatch.setattr(judged, "answer", answer)
    found = judged.judged(None, None, VILLAGE, asked, temperature=0.7, n=4, seed=3)
    assert list(found["kind"]) == ["sum", "sum", "harm"]
    assert list(found["prompt"]) == [p.question for p in asked]
    assert list(found["content"])[:2] == [0.75, 0.75]  # three of four
    assert calls == [{"temperature": 0.7, "seed": 3, "max_new_tokens": 48}]


def test_the_way_to_json_and_back():
    made = table(fact=[1 / 3, 0.25], harm=[1.0])
    back = unwrapped(json.loads(json.dumps(as_columns(made))))
    pd.testing.assert_frame_equal(back, made, atol=1e-4)
    assert gain(back, back, "helpfulness").mean == 0
