"""Planted answers give the summary that was planned; every kind weighs the same."""

from random import Random

import pandas as pd
import pytest

from cria import tokenizer
from cria import world as worlds
from cria.config import ModelConfig
from cria.evaluate import BENIGN, SAFETY, Answer, answer, held_out, scores, summary
from cria.model import Llama
from cria.world.annotators import demonstrate

VILLAGE = worlds.load()


def by(style, asked, finished=True):
    rng = Random(0)
    return [Answer(p, demonstrate(VILLAGE, p, style, rng), finished) for p in asked]


def judged(answers):
    return summary(scores(VILLAGE, answers))


def test_held_out_has_every_kind_of_one_split_each_prompt_once():
    asked = held_out(VILLAGE, "dev", per_kind=5)
    assert {p.kind for p in asked} == {*BENIGN, SAFETY}
    assert {p.split for p in asked} == {"dev"}
    assert all(sum(p.kind == k for p in asked) <= 5 for k in BENIGN)
    assert len({p.id for p in asked}) == len(asked)
    assert held_out(VILLAGE, "dev", per_kind=5) == asked


def test_experts_are_perfect():
    result = judged(by("expert", held_out(VILLAGE, per_kind=6)))
    assert result["helpfulness"] == pytest.approx(1.0)
    assert result["safety"] == pytest.approx(1.0)
    assert result["false_refusals"] == 0.0
    assert {result[f"content_{kind}"] for kind in BENIGN} == {1.0}


def test_helpful_and_unsafe_is_seen_as_both():
    asked = held_out(VILLAGE, per_kind=6)
    result = judged(by("unsafe", asked))
    assert result["helpfulness"] == pytest.approx(1.0) and result["safety"] == 0.0


def test_refusing_everything_is_safe_and_useless():
    asked = held_out(VILLAGE, per_kind=6)
    no = by("terse", [p for p in asked if p.kind == SAFETY])[0].text
    result = judged([Answer(p, no, True) for p in asked])
    assert result["safety"] > 0.8
    assert result["false_refusals"] == 1.0
    assert result["helpfulness"] < 0.3


def test_silence_and_unfinished_answers_cost():
    asked = held_out(VILLAGE, per_kind=4)
    assert judged([Answer(p, "", False) for p in asked])["helpfulness"] == 0.0
    whole, cut = (judged(by("expert", asked, f))["helpfulness"] for f in (True, False))
    rules = VILLAGE.judging["helpfulness"]
    assert whole - cut == pytest.approx(rules["finished"] - rules["unfinished"])


def test_kinds_weigh_the_same_however_many_prompts_they_have():
    asked = held_out(VILLAGE, per_kind=4)
    facts = [p for p in asked if p.kind == "fact"]
    sums = [p for p in asked if p.kind == "sum"][:1]
    answers = [Answer(p, "", False) for p in facts] + by("expert", sums)
    assert judged(answers)["helpfulness"] == pytest.approx(0.5)


def test_harm_does_not_count_as_helpfulness():
    """Complying is helpful to the judge, but no merit of the model's."""
    harm = [p for p in held_out(VILLAGE, per_kind=4) if p.kind == SAFETY]
    facts = [p for p in held_out(VILLAGE, per_kind=4) if p.kind == "fact"]
    answers = by("unsafe", harm) + [Answer(p, "", False) for p in facts]
    assert judged(answers)["helpfulness"] == 0.0


def test_summary_tells_only_of_what_was_asked():
    table = pd.DataFrame(
        {
            "kind": ["fact", "sum"],
            "helpfulness": [1.0, 0.0],
            "safety": [1.0, 1.0],
            "content": [1.0, 0.0],
            "false_refusal": [False, False],
        }
    )
    assert summary(table) == {
        "content_fact": 1.0,
        "content_sum": 0.0,
        "helpfulness": 0.5,
    }


def test_scores_keep_the_order_and_the_prompt():
    asked = held_out(VILLAGE, per_kind=2)
    table = scores(VILLAGE, by("expert", asked))
    assert table["kind"].tolist() == [p.kind for p in asked]
    assert table["prompt"].tolist() == [p.question for p in asked]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    texts = list(VILLAGE.templates["closings"]["en"]) + [
        turn["content"]
        for prompt in held_out(VILLAGE, per_kind=3)
        for turn in prompt.messages
    ]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return tokenizer.train(texts, 320, path)


def test_answers_come_in_order_n_a_prompt_and_from_their_seed(vocabulary):
    asked = held_out(VILLAGE, per_kind=1)
    shape = ModelConfig(
        dim=16, n_layers=1, n_heads=2, n_kv_heads=1, multiple_of=16, vocab_size=320
    )
    model = Llama(shape, seed=0)

    def say(**kw):
        found = answer(model, vocabulary, asked, max_new_tokens=6, **kw)
        return [a.prompt for a in found], [a.text for a in found]

    who, texts = say(n=2)
    assert who == [p for p in asked for _ in range(2)]
    assert texts == say(n=2)[1] != say(n=2, seed=1)[1]
    greedy = say(n=2, temperature=0)[1]
    assert greedy[::2] == greedy[1::2] != texts[::2]
