"""The arms of notebook 04 differ in what they are said to differ in, and only there."""

import pytest

from cria import config, packing, sft_questions, stages

SMOKE = config.load("smoke", **{"comparisons.many_demonstrations": 400})


@pytest.fixture(scope="module")
def texts():
    return sft_questions.written(SMOKE, 3)


def test_who_writes(texts):
    assert {d.style for d in texts["few"]} == {"expert"}
    assert {d.style for d in texts["many"]} == {*SMOKE.sft.variants["a"].annotators}
    assert len(texts["few"]) == SMOKE.comparisons.few_demonstrations
    assert len(texts["many"]) == 400
    # held out are the wordings too: what the judge is shown was never trained on
    asked = {d.prompt.question for name in ("few", "many") for d in texts[name]}
    assert not asked & {d.prompt.question for d in texts["unseen"]}


def test_every_arm_sees_as_many_dialogues_a_step(texts, tmp_path, monkeypatch):
    seen = {}

    def run(function, jobs):
        seen.update(jobs)
        return {name: {} for name in jobs}

    vocabulary = stages.get("tokenizer", SMOKE, 3, tmp_path, say=lambda line: None)

    class Base:
        def file(self, name):
            return tmp_path / name

    monkeypatch.setattr(sft_questions.side_by_side, "run", run)
    upstream = {"tokenizer": vocabulary, "base": Base()}
    sft_questions.build(SMOKE, 3, upstream, tmp_path)
    assert set(seen) == {"many", "few", "alone", "separator"}
    assert len({job["steps"] for job in seen.values()}) == 1
    many, alone = seen["many"]["rows"], seen["alone"]["rows"]
    assert alone.n_docs == len(alone) == many.n_docs and alone.tokens == many.tokens
    a_step = SMOKE.sft.batch_size * many.n_docs / len(many)
    assert seen["alone"]["batch_size"] == pytest.approx(a_step, abs=0.5)
    per_dialogue = seen["separator"]["rows"].tokens - many.tokens
    assert per_dialogue >= many.n_docs  # a <sep> in each, at the least
    assert seen["separator"]["held_out"].tokens > seen["many"]["held_out"].tokens
    assert packing.n_steps(many, SMOKE.sft.batch_size, 1) == seen["many"]["steps"]
