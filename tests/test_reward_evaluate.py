"""Measuring reward models: each measure on data whose answer is known."""

import math
from random import Random

import numpy as np
import pandas as pd
import pytest

from cria import chat, reward_evaluate, tokenizer, world
from cria.config import GRADES, ModelConfig
from cria.evaluate import held_out
from cria.model import Llama
from cria.preferences import Comparison
from cria.reward import RewardModel, score
from cria.reward_data import encode
from cria.reward_evaluate import (
    accuracy,
    calibration,
    ceiling,
    content_probe,
    scored,
    unsafe_recall,
)
from cria.world.annotators import demonstrate
from cria.world.contrasts import PROBES, contrasts
from cria.world.judge import judge

VILLAGE = world.load()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    texts = list(VILLAGE.templates["closings"]["en"]) + [
        turn["content"]
        for prompt in held_out(VILLAGE, per_kind=3)
        for turn in prompt.messages
    ]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return tokenizer.train(texts, 340, path)


def on_prompt(prompt, chosen, rejected, **about):
    return Comparison(prompt.turns, chosen, rejected, prompt=prompt, **about)


# What a reward model says of each comparison


def test_scored_has_a_row_a_comparison(vocabulary):
    shape = ModelConfig(16, 1, 2, 1, vocab_size=340, multiple_of=8)
    model = RewardModel(Llama(shape, seed=0))
    prompts = held_out(VILLAGE, per_kind=1)[:4]
    given = [
        on_prompt(prompts[0], "Yes.", "No.", grade="better", safe=(True, False)),
        on_prompt(prompts[1], "No.", "Yes.", ended=(True, False)),
        on_prompt(prompts[2], "The same.", "The same.", grade="slightly"),
        Comparison((("user", "Hello!"),), "Good day.", "Go away!"),
    ]
    table = scored(model, vocabulary, given)
    for name, expected in (
        ("grade", ["better", None, "slightly", None]),
        ("kind", [*(p.kind for p in prompts[:3]), None]),
        ("safe_chosen", [True, None, None, None]),
        ("safe_rejected", [False, None, None, None]),
    ):
        column = table[name]
        assert column.isna().tolist() == [value is None for value in expected]
        assert column.dropna().tolist() == [v for v in expected if v is not None]
    for (prompt, both), row in zip(
        encode(vocabulary, given).rows, table.to_dict("records"), strict=True
    ):
        alone = [score(model, [prompt], [[ids]])[0][0] for ids in both]
        assert [row["r_chosen"], row["r_rejected"]] == pytest.approx(alone, abs=0.02)
        gap = row["r_chosen"] - row["r_rejected"]
        assert row["right"] == (1 if gap > 0 else 0.5 if gap == 0 else 0)
        assert row["loss"] == pytest.approx(math.log(1 + math.exp(-gap)), abs=1e-5)
    assert table["right"][2] == 0.5 and {0, 1} >= set(table["right"]) - {0.5}
    assert accuracy(table)["slightly"] == 0.5


def test_accuracy_by_grade_and_over_all():
    table = pd.DataFrame(
        {
            "grade": ["slightly", "better", None, "slightly", "better", "better"],
            "right": [1.0, 1.0, 0.0, 0.0, 0.5, 0.0],
        }
    )
    found = accuracy(table)
    assert found == {"better": 0.5, "slightly": 0.5, "average": pytest.approx(2.5 / 6)}
    assert list(found) == ["better", "slightly", "average"], "clearest grade first"
    assert list(accuracy(pd.DataFrame({"grade": GRADES[::-1], "right": 1.0}))) == [
        *GRADES,
        "average",
    ]


def judged_pairs(ground, other, flip=False):
    """An expert's answers against another's, the one the judge prefers first."""
    rng, made = Random(0), []
    for prompt in held_out(VILLAGE, per_kind=20):
        pair = [demonstrate(VILLAGE, prompt, style, rng) for style in ("expert", other)]
        first, second = (getattr(judge(VILLAGE, prompt, t), ground) for t in pair)
        if first != second:
            if (second > first) ^ flip:
                pair.reverse()
            grade = GRADES[len(made) % 4]
            made.append(on_prompt(prompt, *pair, ground=ground, grade=grade))
    return made


@pytest.mark.parametrize(
    ("ground", "other"), [("helpfulness", "sloppy"), ("safety", "unsafe")]
)
def test_labels_without_noise_have_a_ceiling_of_one(ground, other):
    pairs = judged_pairs(ground, other)
    assert len(pairs) >= 8
    assert ceiling(VILLAGE, pairs) == dict.fromkeys([*GRADES, "average"], 1.0)
    flipped = judged_pairs(ground, other, flip=True)
    assert set(ceiling(VILLAGE, flipped).values()) == {0.0}
    both = ceiling(VILLAGE, pairs + flipped)["average"]
    assert both == 0.5
    tie = on_prompt(pairs[0].prompt, "Oh.", "Oh.", ground=ground, grade="better")
    assert ceiling(VILLAGE, [tie]) == {"better": 0.5, "average": 0.5}


def test_an_answer_that_was_cut_off_is_judged_as_such():
    pair = judged_pairs("helpfulness", "sloppy")[0]
    same = {"chosen": pair.chosen, "rejected": pair.chosen, "ground": "helpfulness"}
    cut = on_prompt(pair.prompt, ended=(True, False), grade="better", **same)
    assert ceiling(VILLAGE, [cut])["average"] == 1.0


# Does it judge content?


def probed(monkeypatch, vocabulary, judgement):
    """content_probe of a model whose score is judgement(prompt ids, answer text)."""

    def fake(model, prompts, answers):
        return [
            [judgement(tuple(p), vocabulary.decode(a).strip()) for a in several]
            for p, several in zip(prompts, answers, strict=True)
        ]

    monkeypatch.setattr(reward_evaluate, "score", fake)
    return content_probe(None, vocabulary, VILLAGE, n=20)


def test_the_probe_tells_content_from_manners(monkeypatch, vocabulary):
    right = {
        (tuple(chat.prompt_ids(vocabulary, c.prompt.messages)), c.right)
        for probe in PROBES
        for c in contrasts(VILLAGE, probe, 20, "test", 0)
    }
    closings = VILLAGE.templates["closings"].values()
    closings = tuple(closing for several in closings for closing in several)

    def run(judgement):
        return probed(monkeypatch, vocabulary, judgement)

    assert run(lambda p, text: (p, text) in right) == dict.fromkeys(PROBES, 1.0)
    assert run(lambda p, text: (p, text) not in right) == dict.fromkeys(PROBES, 0.0)
    # Whoever looks at manners alone sees no difference, or the wrong one.
    assert run(lambda p, text: text.endswith(closings)) == dict.fromkeys(PROBES, 0.0)


# Calibration


def simulated(n, scale=1.0, seed=0):
    """Bradley and Terry's world: the first is chosen with probability σ(gap)."""
    rng = np.random.default_rng(seed)
    gap = rng.normal(0, 2, n)
    chosen = rng.random(n) < 1 / (1 + np.exp(-gap))
    gap = np.where(chosen, gap, -gap)  # the chosen one comes first
    offset = rng.normal(0, 3, n)  # scores have no zero
    right = (gap > 0).astype(float)
    return pd.DataFrame(
        {"r_chosen": offset + scale * gap, "r_rejected": offset, "right": right}
    )


def test_the_calibration_of_a_true_model_lies_on_the_diagonal():
    found = calibration(simulated(40_000), bins=8)
    assert len(found) == 8 and found["pairs"].sum() == 40_000
    assert (found["predicted"] - found["right"]).abs().max() < 0.02
    edges = np.linspace(0.5, 1, 9)
    assert found["predicted"].between(edges[:-1], edges[1:]).all()


def test_a_model_too_sure_of_itself_lies_below_and_a_timid_one_above():
    off = {}
    for scale in (3.0, 0.3):
        found = calibration(simulated(20_000, scale))
        off[scale] = (found["right"] - found["predicted"])[found["pairs"] > 200]
    assert (off[3.0][1:] < -0.02).all() and (off[0.3][1:] > 0.02).all()


def test_calibration_of_few_pairs_and_of_the_extremes():
    """Ties, and gaps that saturate σ, have their bins; empty bins are left out."""
    table = pd.DataFrame(
        {
            "r_chosen": np.array([1.0, 500.0, 0.0], dtype=np.float32),
            "r_rejected": np.array([1.0, 0.0, 0.001], dtype=np.float32),
            "right": [0.5, 1.0, 0.0],
        },
        index=[7, 3, 5],  # as cut out of a larger table
    )
    found = calibration(table, bins=4)
    assert found["pairs"].tolist() == [2, 1]
    assert found["right"].tolist() == [0.25, 1.0]
    assert found["predicted"].tolist() == pytest.approx([0.5, 1.0], abs=1e-3)


# Unsafe answers


def planted(rows):
    names = ["r_chosen", "r_rejected", "safe_chosen", "safe_rejected"]
    return pd.DataFrame(rows, columns=names)


def test_recall_and_precision_on_planted_numbers():
    table = planted(
        [
            (2.0, -1.0, True, False),  # caught
            (1.0, 0.5, False, False),  # both missed
            (-0.1, 3.0, True, True),  # a false alarm
            (4.0, -3.0, True, False),  # caught
            (0.0, 1.0, True, True),  # σ(0) is not below one half
        ]
    )
    found = unsafe_recall(table)
    assert found == {"recall": 0.5, "precision": pytest.approx(2 / 3), "unsafe": 4}
    strict = unsafe_recall(table, threshold=0.15)  # logit −1.73
    assert strict == {"recall": 0.25, "precision": 1.0, "unsafe": 4}
    generous = unsafe_recall(table, threshold=0.9)
    assert generous["recall"] == 1.0 and generous["precision"] == 0.5


def test_answers_without_a_label_are_left_out():
    labelled = planted([(2.0, -1.0, True, False)])
    table = planted([(2.0, -1.0, True, False), (-9.0, -9.0, None, None)])
    assert unsafe_recall(table) == unsafe_recall(labelled)
    half = planted([(-9.0, -1.0, None, False)])
    assert unsafe_recall(half) == {"recall": 1.0, "precision": 1.0, "unsafe": 1}


def test_nothing_unsafe_is_no_recall():
    for table in (planted([(2.0, 1.0, True, True)]), planted([])):
        assert unsafe_recall(table) == {"recall": 0.0, "precision": 0.0, "unsafe": 0}
