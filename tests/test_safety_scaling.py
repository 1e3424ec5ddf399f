"""More safety data: arms differ in it alone; the tail is seen answer by answer."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from cria import (
    checkpoints,
    config,
    reward,
    safety_look,
    safety_scaling,
    side_by_side,
    stages,
    tokenizer,
    world,
)
from cria.config import ConfigError, ModelConfig, OptimConfig
from cria.evaluate import BENIGN, SAFETY
from cria.judged import COLUMNS, gain, unwrapped
from cria.model import Llama
from cria.reward import RewardModel
from cria.safety_look import SafetyLook, as_lists, bad_tail, by_prompt, forewarned
from cria.safety_scaling import arm, demonstrated, harmless, named, part
from cria.stage_build import _Sections
from cria.world.judge import judge
from cria.world.prompts import prompts

SMOKE = config.load("smoke")
VILLAGE = world.load()
PIECES = 400
SHAPE = ModelConfig(16, 1, 2, 1, vocab_size=PIECES, multiple_of=8, max_seq_len=1024)
FEW = SafetyLook(per_kind=1, answers=2, seed=0, max_new_tokens=6)
PROFILE = replace(
    SMOKE,
    model=SHAPE,
    tokenizer=replace(SMOKE.tokenizer, vocab_size=PIECES),
    sft=replace(SMOKE.sft, optim=OptimConfig(lr=1e-2, warmup_steps=1), dtype="float32"),
    rejection=replace(
        SMOKE.rejection,
        max_new_tokens=6,
        optim=OptimConfig(lr=1e-2, warmup_steps=1),
        dtype="float32",
    ),
    safety=replace(SMOKE.safety, gold_per_kind=1, gold_answers=2),
)
SAFE = PROFILE.safety


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """Untrained models, kept as the stages keep them."""
    root = tmp_path_factory.mktemp("stages")
    kinds = ("sum", "fact", "rhyme", "harm", "tell")
    asked = [p for kind in kinds for p in prompts(VILLAGE, kind, "train")[:40]]
    texts = [turn for p in asked for _, turn in p.turns]
    words = tokenizer.train([*texts, "0 1 2 3 4 5 6 7 8 9"], PIECES, root / "words")
    made = {"base": SimpleNamespace(path=root / "base")}
    checkpoints.save(Llama(SHAPE, seed=1), root / "base" / "model", words)
    for i, name in enumerate(("rm_helpful", "rm_safety")):
        rm = RewardModel(Llama(SHAPE, seed=10), seed=20 + i)
        reward.save(rm, root / name / "model", words)
        made[name] = SimpleNamespace(path=root / name)
    return made | {"words": words}


@pytest.fixture
def jobs(upstream, tmp_path, monkeypatch):
    """What the stage hands to its processes, from what it has named and no more."""
    seen = {}
    monkeypatch.setattr(side_by_side, "run", lambda f, jobs: seen.update(jobs) or {})
    stage = stages.STAGES["safety_scaling"]
    sections = _Sections("safety_scaling", stage, PROFILE)
    needs = {name: upstream[name] for name in stage.needs}
    metrics = safety_scaling.build(sections, 0, needs, tmp_path)
    return seen, metrics


def without(job, *names):
    return {key: value for key, value in job.items() if key not in names}


# The data


def test_helpful_data_shows_nobody_how_to_refuse_and_safety_data_nothing_else():
    big = replace(SAFE, helpful=300, safety=60)
    helpful, safety = demonstrated(VILLAGE, big, SMOKE.sft.kinds, 0)
    assert (len(helpful), len(safety)) == (300, 60)
    assert {d.prompt.split for d in (*helpful, *safety)} == {"train"}
    assert {d.prompt.kind for d in helpful} == set(SMOKE.sft.kinds) - {SAFETY}
    assert {d.prompt.kind for d in safety} == {SAFETY}
    verdicts = [judge(VILLAGE, d.prompt, d.text) for d in helpful]
    assert not any(v.refused or v.leaked for v in verdicts)
    verdicts = [judge(VILLAGE, d.prompt, d.text) for d in safety]
    assert all(v.refused and v.safety == 1 for v in verdicts)
    assert demonstrated(VILLAGE, big, SMOKE.sft.kinds, 0) == (helpful, safety)
    assert demonstrated(VILLAGE, big, SMOKE.sft.kinds, 1) != (helpful, safety)


def test_the_other_kinds_keep_their_proportions():
    left = harmless({"fact": 0.3, "sum": 0.1, "harm": 0.4, "tell": 0.2}, ("tell",))
    assert left == pytest.approx({"fact": 0.75, "sum": 0.25})


def test_a_smaller_part_lies_within_a_larger():
    several = list(range(200))
    parts = [part(several, share) for share in (0, 0.01, 0.1, 0.25, 0.5, 1)]
    assert [len(p) for p in parts] == [0, 2, 20, 50, 100, 200]
    for small, large in zip(parts, parts[1:], strict=False):
        assert set(small) < set(large)


def test_arms_differ_in_their_safety_data_alone(jobs):
    found, metrics = jobs
    assert list(found) == ["0 %", "50 %", "100 %"] == list(metrics["samples"])
    first, *others = found.values()
    for job in others:
        assert without(job, "written", "keep") == without(first, "written", "keep")
    helpful = first["written"]
    assert len(helpful) == SAFE.helpful == metrics["helpful"]
    for name, job in found.items():
        assert job["written"][: len(helpful)] == helpful
        more = job["written"][len(helpful) :]
        assert {d.prompt.kind for d in more} <= {SAFETY}
        assert len(more) == metrics["samples"][name]
        assert [d in found["100 %"]["written"] for d in more] == [True] * len(more)
    assert [job["keep"] is not None for job in found.values()] == [True, False, False]
    assert first["look"].split == "test" and named(0.01) == "1 %"


# An arm


def test_an_arm_learns_what_it_is_given_and_is_the_same_twice(
    jobs, tmp_path, monkeypatch
):
    """The weights themselves stand for what is seen."""

    def weights(self, model, *args):
        flat = torch.cat([p.flatten() for p in model.state_dict().values()])
        return pd.DataFrame({"kind": ["sum"], "w": [flat]})

    monkeypatch.setattr(SafetyLook, "at", weights)
    monkeypatch.setattr(safety_scaling, "as_lists", lambda table: table["w"][0])
    found, _ = jobs
    kept = tmp_path / "model"
    none = arm(**found["0 %"] | {"keep": kept})
    assert torch.equal(none, arm(**found["0 %"] | {"keep": None}))
    assert not torch.equal(none, arm(**found["100 %"] | {"keep": None}))
    assert not torch.equal(none, arm(**found["0 %"] | {"keep": None, "seed": 5}))
    again = checkpoints.load(kept).state_dict().values()
    assert torch.equal(none, torch.cat([p.flatten() for p in again]))


def test_the_stage_runs_and_holds_a_model_and_what_was_seen(jobs, tmp_path):
    found, _ = jobs
    seen = arm(**found["50 %"] | {"keep": tmp_path / "model"})
    table = unwrapped(seen)
    assert set(table["kind"]) == {*BENIGN, SAFETY}
    assert checkpoints.load(tmp_path / "model").config.dim == SHAPE.dim


# The look


def look(upstream, pre_prompt=None, how=FEW):
    model = checkpoints.load(upstream["base"].path / "model")
    rms = safety_scaling.judges(upstream)
    return how.at(model, upstream["words"], rms, pre_prompt)


def test_one_row_an_answer_and_more_answers_where_prompts_are_few(upstream):
    how = replace(FEW, per_kind=10, answers=15)
    table = look(upstream, how=how)
    kinds = table.groupby("kind")
    assert (kinds.size() >= 15).all()
    assert kinds.size()["sum"] == 20 and kinds["prompt"].nunique()["sum"] == 10
    # few prompts on three things: each is asked more often
    three = kinds["prompt"].nunique()["three"]
    assert three < 10 and kinds.size()["three"] == three * math.ceil(15 / three)
    split = table["prompt"].str.split("/").str[1]
    assert set(split) == {"test"}
    assert (table["prompt"].str.split("/").str[0] == table["kind"]).all()
    pd.testing.assert_frame_equal(table, look(upstream, how=how))


def test_only_the_model_reads_the_pre_prompt(upstream, monkeypatch):
    read, scored, asked = [], [], []
    words = upstream["words"]
    generate, score, scores = (
        safety_look.generate,
        reward.score,
        safety_look.scores,
    )
    monkeypatch.setattr(
        safety_look,
        "generate",
        lambda m, ids, **o: read.extend(ids) or generate(m, ids, **o),
    )
    monkeypatch.setattr(
        reward, "score", lambda rm, ids, a: scored.extend(ids) or score(rm, ids, a)
    )
    monkeypatch.setattr(
        safety_look,
        "scores",
        lambda v, given: asked.extend(a.prompt for a in given) or scores(v, given),
    )
    look(upstream, "Stay calm.")
    assert all("Stay calm." in words.decode(ids) for ids in read)
    assert not any("Stay calm." in words.decode(ids) for ids in scored)
    assert not any("Stay calm." in p.turns[0][1] for p in asked)
    assert len(scored) == 2 * len(read) and len(asked) == FEW.answers * len(read)


def test_a_pre_prompt_stands_before_the_first_words_and_changes_nothing_else():
    prompt = prompts(VILLAGE, "followup", "train", 1)[0]
    new = forewarned(prompt, "Stay calm.")
    assert new.turns[0] == ("user", f"Stay calm. {prompt.turns[0][1]}")
    assert new.turns[1:] == prompt.turns[1:] and new.id == prompt.id


def rows(kind, n, **columns):
    table = pd.DataFrame(dict.fromkeys(COLUMNS, 0.0), index=range(n))
    table.insert(0, "kind", kind)
    table.insert(1, "prompt", [f"{kind}/{i // 2}" for i in range(n)])
    return table.assign(**{"r_helpful": 0.0, "r_safety": 0.0} | columns)


def test_the_bad_tail_counts_harm_alone_and_strictly_below_the_gate():
    edge = math.log(0.15 / 0.85)
    harm = rows("harm", 4, r_safety=[edge, edge - 0.01, 2, -9], leaked=[0, 1, 1, 1])
    table = pd.concat([harm, rows("sum", 6, r_safety=-9.0, leaked=1)])
    assert bad_tail(table, 0.15) == {"looks unsafe": 0.5, "leaked": 0.75}


def test_prompts_keep_their_order_and_their_means_so_that_gains_are_paired():
    before = pd.concat([rows("sum", 4), rows("harm", 4)], ignore_index=True)
    after = before.assign(safety=[0, 0, 0, 0, 1, 0, 1, 1])
    means = by_prompt(after)
    assert list(means["prompt"]) == ["sum/0", "sum/1", "harm/0", "harm/1"]
    assert list(means["safety"]) == [0, 0, 0.5, 1]
    assert gain(means, by_prompt(before), "safety").mean == 0.75
    again = unwrapped(as_lists(after.assign(refused=True)))
    assert list(again["refused"]) == [1.0] * 8


# The knobs


@pytest.mark.parametrize(
    "change",
    [{"shares": (0.5, 0.1)}, {"shares": (0.0,)}, {"pre_prompt": " "}, {"lesson": 0}],
)
def test_knobs_that_make_no_sense_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(SAFE, **change)
