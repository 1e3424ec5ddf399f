"""All versions side by side: the same prompts, each score with its own answer."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from cria import (
    chat,
    checkpoints,
    config,
    evaluation,
    reward,
    side_by_side,
    stages,
    tokenizer,
    world,
)
from cria.config import EvaluateConfig, ModelConfig
from cria.evaluate import BENIGN, SAFETY, Answer
from cria.evaluation import (
    DIVERSE,
    SORTS,
    VERSIONS,
    asked,
    by_prompt,
    diversity_of,
    gold_of,
    load,
    view,
)
from cria.judged import gain, gold
from cria.model import Llama
from cria.reward import RewardModel
from cria.stage_build import _Sections
from cria.world.judge import judge
from cria.world.prompts import prompts

VILLAGE = world.load()
PIECES = 400
SHAPE = ModelConfig(16, 1, 2, 1, vocab_size=PIECES, multiple_of=8, max_seq_len=256)
FEW = EvaluateConfig(
    prompts=7,
    safety_prompts=3,
    borderline_prompts=2,
    answers=4,
    temperature=1.0,
    top_p=1.0,
    max_new_tokens=6,
    diversity_prompts=3,
    diversity_samples=3,
    diversity_temperatures=(0.5, 1.0),
)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """Untrained versions and reward models, kept as the stages keep them."""
    root = tmp_path_factory.mktemp("stages")
    kinds = ("sum", "fact", "rhyme", "harm", "tell")
    texts = [t for k in kinds for p in prompts(VILLAGE, k, "train")[:40]
             for _, t in p.turns]  # fmt: skip
    pieces = tokenizer.train([*texts, "0 1 2 3 4 5 6 7 8 9"], PIECES, root / "words")
    made = {}
    for i, name in enumerate(VERSIONS.values()):
        folder = root / name / "model"
        checkpoints.save(Llama(SHAPE, seed=i), folder, pieces)
        made[name] = SimpleNamespace(
            path=root / name, file=lambda wanted, folder=folder: folder / wanted
        )
    for i, ground in enumerate(("helpfulness", "safety")):
        rm = RewardModel(Llama(SHAPE, seed=10 + i), seed=20 + i)
        reward.save(rm, root / "v4" / f"rm_{ground}", pieces)
    return made


@pytest.fixture(scope="module")
def judges(upstream):
    return tuple(upstream["v4"].path / f"rm_{g}" for g in ("helpfulness", "safety"))


@pytest.fixture(scope="module")
def table(upstream, judges):
    columns = view(upstream["v1"].path / "model", judges, FEW, seed=1)
    return pd.DataFrame(columns)


def test_held_out_prompts_of_every_kind_as_many_as_wanted_or_there_are():
    found = asked(VILLAGE, FEW)
    assert set(found) == {*BENIGN, SAFETY}
    several = [p for group in found.values() for p in group]
    assert {p.split for p in several} == {"test"}
    assert len({p.id for p in several}) == len(several)
    assert [len(found[k]) for k in ("fact", "three", "borderline", SAFETY)] == [
        1, 1, 2, 3,
    ]  # fmt: skip
    many = asked(VILLAGE, replace(FEW, prompts=10_000, safety_prompts=10_000))
    assert {k: len(v) for k, v in many.items() if k != "borderline"} == {
        k: len(prompts(VILLAGE, k, "test")) for k in many if k != "borderline"
    }


def test_every_kind_has_enough_answers_however_few_its_prompts(table):
    assert (table.groupby("kind").size() >= FEW.answers).all()
    assert (table.groupby("id").size() > 1).all()
    assert table["length"].between(1, FEW.max_new_tokens).all()
    harm = table[table["kind"] == SAFETY]
    assert harm["risk"].notna().all() and harm["vector"].notna().all()


def test_each_score_is_of_its_own_answer(table, upstream, judges, monkeypatch):
    """Judged again from the text alone; the reward models' given out by number."""
    folder, given = upstream["v1"].path / "model", []

    def score(rm, starts, several, **options):
        found = []
        for start, answers in zip(starts, several, strict=True):
            found.append(list(range(len(given), len(given) + len(answers))))
            given.extend((rm, start, answer) for answer in answers)
        return found

    monkeypatch.setattr(evaluation.reward, "score", score)
    numbered = pd.DataFrame(view(folder, judges, FEW, seed=1))
    pieces = tokenizer.Tokenizer(folder / "tokenizer.model")
    of = {p.id: p for group in asked(VILLAGE, FEW).values() for p in group}
    heads = [reward.load(path).head.weight.sum() for path in judges]
    assert list(numbered["answer"]) == list(table["answer"])
    for row in numbered.itertuples():
        prompt = of[row.id]
        assert row.prompt == prompt.question and row.kind == prompt.kind
        verdict = judge(VILLAGE, prompt, row.answer, row.finished)
        assert row.helpfulness == pytest.approx(verdict.helpfulness, abs=1e-4)
        assert row.safety == pytest.approx(verdict.safety, abs=1e-4)
        assert row.r_helpful != row.r_safety
        for number, head in zip((row.r_helpful, row.r_safety), heads, strict=True):
            rm, start, ids = given[int(number)]
            assert rm.head.weight.sum() == head
            assert start == chat.prompt_ids(pieces, prompt.messages)
            assert pieces.decode(ids).strip() == row.answer and len(ids) == row.length


def test_the_same_seed_asks_every_version_alike(upstream, judges, table):
    again = pd.DataFrame(view(upstream["v1"].path / "model", judges, FEW, seed=1))
    pd.testing.assert_frame_equal(again, table)
    other = pd.DataFrame(view(upstream["v2"].path / "model", judges, FEW, seed=1))
    assert list(other["id"]) == list(table["id"])
    assert list(other["answer"]) != list(table["answer"])


def test_gold_is_safety_on_harm_and_helpfulness_elsewhere(table):
    score = gold_of(table)
    harm = table["kind"] == SAFETY
    assert (score[harm] == table["safety"][harm]).all()
    assert (score[~harm] == table["helpfulness"][~harm]).all()


def test_prompt_by_prompt_it_is_what_the_judged_tables_are(table):
    means = by_prompt(table)
    assert len(means) == table["id"].nunique()
    one = table[table["id"] == means["id"][0]]
    assert means["helpfulness"][0] == pytest.approx(one["helpfulness"].mean())
    assert gain(means, means, "helpfulness").mean == 0
    assert set(gold(means)) == {"helpfulness", "safety", "false refusals"}


def run_here(function, jobs):
    return {name: function(**arguments) for name, arguments in jobs.items()}


def stage(name, upstream, monkeypatch, out):
    """The stage as the table has it, with what it names and nothing else."""
    monkeypatch.setattr(side_by_side, "run", run_here)
    entry = stages.STAGES[name]
    profile = replace(config.load("smoke"), evaluate=FEW)
    module, function = entry.function.split(":")
    assert module == "cria.evaluation"
    needs = {need: upstream[need] for need in entry.needs}
    return getattr(evaluation, function)(
        _Sections(name, entry, profile), 0, needs, out, **entry.options
    )


def test_the_stage_keeps_all_versions_and_finds_them_again(
    upstream, monkeypatch, tmp_path
):
    metrics = stage("evaluation", upstream, monkeypatch, tmp_path)
    found = load(tmp_path)
    assert list(found) == list(metrics) == list(VERSIONS)
    ids = [list(one["id"]) for one in found.values()]
    assert all(one == ids[0] for one in ids), "the same prompts in the same order"
    assert metrics["V1"]["answers"] == len(ids[0])
    assert metrics["V1"]["length"] == pytest.approx(found["V1"]["length"].mean())


def test_no_answers_and_damaged_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no answers\.json"):
        load(tmp_path)
    (tmp_path / "answers.json").write_text('{"V1": {"id": [1, ')
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path)


def test_diversity_of_both_sorts_at_every_temperature(upstream, monkeypatch, tmp_path):
    found = stage("diversity", upstream, monkeypatch, tmp_path)
    assert list(found) == list(DIVERSE)
    json.dumps(found)
    for temperatures in found.values():
        assert list(temperatures) == ["0.5", "1"]
        for columns in temperatures.values():
            rows = pd.DataFrame(columns)
            assert rows.groupby("sort").size().to_dict() == {"factual": 3, "open": 3}
            assert set(rows["kind"]) == {*SORTS["factual"], *SORTS["open"]}
            assert rows["self_bleu"].between(0, 1).all()
            assert rows["different"].between(1, FEW.diversity_samples).all()


def test_nearly_greedy_answers_are_alike(upstream):
    folder = upstream["v1"].path / "model"
    cold = pd.DataFrame(diversity_of(folder, FEW, 1e-4, seed=0))
    hot = pd.DataFrame(diversity_of(folder, FEW, 2.0, seed=0))
    assert (cold["different"] == 1).all()
    assert cold["self_bleu"].to_list() == pytest.approx([1.0] * len(cold))
    assert hot["different"].mean() > 2 and hot["self_bleu"].mean() < 0.9


def test_answers_are_compared_with_those_to_the_same_prompt(upstream, monkeypatch):
    def repeat(model, vocabulary, several, c, temperature, n, seed):
        return [Answer(p, p.question, True) for p in several for _ in range(n)], []

    monkeypatch.setattr(evaluation, "_answers", repeat)
    found = pd.DataFrame(diversity_of(upstream["v1"].path / "model", FEW, 1.0, 0))
    assert (found["different"] == 1).all() and (found["self_bleu"] == 1).all()


def test_no_prompt_is_both_factual_and_open_and_all_are_there_if_many_are_wanted():
    assert not set(SORTS["factual"]) & set(SORTS["open"])
    found = evaluation._sorts(VILLAGE, 10_000)
    for sort, kinds in SORTS.items():
        there = sum(len(prompts(VILLAGE, kind, "test")) for kind in kinds)
        assert len(found[sort]) == len({p.id for p in found[sort]}) == there


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"diversity_samples": 1}, "above 1"),
        ({"diversity_temperatures": ()}, "list of numbers above 0"),
        ({"diversity_temperatures": (0.0,)}, "list of numbers above 0"),
        ({"answers": 0}, "answers"),
        ({"top_p": 1.5}, "at most 1"),
    ],
)
def test_impossible_settings_are_one_sentence(change, says):
    with pytest.raises(ValueError, match=says):
        replace(FEW, **change)
