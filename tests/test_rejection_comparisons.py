"""Comparisons beside V1 to V4: an arm differs from its control in one thing only."""

import json
import pickle
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cria import (
    checkpoints,
    config,
    rejection_arms,
    rejection_comparisons,
    reward,
    side_by_side,
    stages,
    tokenizer,
    world,
)
from cria.config import ModelConfig, OptimConfig
from cria.judged import gain, unwrapped
from cria.model import Llama
from cria.preferences import Collection, Comparison
from cria.rejection_arms import Look, accuracies, branch, looked_at, ranking, tuned
from cria.rejection_comparisons import QUESTIONS
from cria.rejection_samples import SAMPLES
from cria.rejection_samples import build as build_samples
from cria.reward import RewardModel
from cria.selection import best, by_prompt, read_pool, write_pool
from cria.stage_build import _Sections
from cria.world.prompts import prompts

SMOKE = config.load("smoke")
VILLAGE = world.load()
PIECES = 400
SHAPE = ModelConfig(16, 1, 2, 1, vocab_size=PIECES, multiple_of=8, max_seq_len=1024)
FEW = Look(per_kind=1, answers=2, seed=0, max_new_tokens=6)
PROFILE = replace(
    SMOKE,
    model=SHAPE,
    tokenizer=replace(SMOKE.tokenizer, vocab_size=PIECES),
    rejection=replace(
        SMOKE.rejection,
        max_new_tokens=6,
        optim=OptimConfig(lr=1e-3, warmup_steps=1),
        dtype="float32",
    ),
    rejection_comparisons=replace(
        SMOKE.rejection_comparisons, prompts=12, gold_per_kind=1, gold_answers=2
    ),
)
K, PROMPTS = PROFILE.rejection.samples, PROFILE.rejection_comparisons.prompts


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """Untrained models and reward models, kept as the stages keep them."""
    root = tmp_path_factory.mktemp("stages")
    kinds = ("sum", "fact", "rhyme", "harm", "tell")
    asked = [p for kind in kinds for p in prompts(VILLAGE, kind, "train")[:40]]
    texts = [turn for p in asked for _, turn in p.turns]
    words = tokenizer.train([*texts, "0 1 2 3 4 5 6 7 8 9"], PIECES, root / "words")
    made = {}
    for i, name in enumerate(("sft_a", "rs_small", "v1", "v2", "v3", "v4")):
        path = root / name
        checkpoints.save(Llama(SHAPE, seed=i), path / "model", words)
        for j, ground in enumerate(("helpfulness", "safety")):
            rm = RewardModel(Llama(SHAPE, seed=10 + i), seed=20 + 2 * i + j)
            if name[0] == "v":
                reward.save(rm, path / f"rm_{ground}", words)
            elif name == "sft_a":
                other = root / f"rm_{'helpful' if j == 0 else 'safety'}"
                reward.save(rm, other / "model", words)
        made[name] = SimpleNamespace(
            path=path,
            tokenizer=lambda: words,
            model=lambda path=path: checkpoints.load(path / "model"),
        )
    for name in ("rm_helpful", "rm_safety"):
        made[name] = SimpleNamespace(path=root / name)
    out = root / "rs_samples"
    out.mkdir()
    build_samples(PROFILE, 0, made, out)
    found = best(read_pool(out / SAMPLES))
    pool = [replace(s, round=3 + i % 2) for i, s in enumerate(found)]
    write_pool(pool, made["v4"].path / "pool.json")
    return made | {"rs_samples": SimpleNamespace(path=out)}


@pytest.fixture
def ask(upstream):
    """Question → its arms, from what its stage has named and nothing else."""

    def asked(question):
        stage = stages.STAGES[f"rs_{question}"]
        assert stage.options == {"question": question}
        sections = _Sections(f"rs_{question}", stage, PROFILE)
        needs = {name: upstream[name] for name in stage.needs}
        return QUESTIONS[question](rejection_comparisons._Given(sections, 0, needs))

    return asked


def without(job, *names):
    return {key: value for key, value in job.items() if key not in names}


# The samples that several arms share


def test_k_scored_answers_to_so_many_different_prompts(upstream, tmp_path):
    found = read_pool(upstream["rs_samples"].path / SAMPLES)
    groups = by_prompt(found)
    assert len(groups) == PROMPTS and {len(g) for g in groups.values()} == {K}
    assert {s.prompt.split for s in found} == {"train", "fresh"}
    assert [p.name for p in upstream["rs_samples"].path.iterdir()] == [SAMPLES]
    made = build_samples(PROFILE, 0, upstream, tmp_path)
    assert made["samples"] == PROMPTS * K and made["score_of_best"] > made["score"]
    again = read_pool(tmp_path / SAMPLES)
    assert again == found, "the same seed, the same samples"


# The questions


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_is_a_stage_that_names_all_it_reads(ask, question):
    jobs = ask(question)
    assert len(jobs) >= 2
    looks = [job["look"] for job in jobs.values() if "look" in job]
    assert all(look == looks[0] and look.split == "test" for look in looks)


def test_best_and_random_are_answers_to_the_same_prompts(ask):
    jobs = ask("choice")
    one, other = jobs["best"], jobs["random"]
    assert without(one, "lessons") == without(other, "lessons")
    asked = [[s.prompt.id for s in job["lessons"]] for job in (one, other)]
    assert asked[0] == asked[1]
    pairs = list(zip(one["lessons"], other["lessons"], strict=True))
    assert all(a.score >= b.score for a, b in pairs)
    assert any(a.score > b.score for a, b in pairs)
    assert one["texts"], "as on the road, texts are read beside"


def test_rrhf_and_best_of_k_start_from_the_same_samples_without_texts(ask):
    jobs = ask("rrhf")
    ours, other = jobs["best of K"], jobs["RRHF"]
    assert ours["lessons"] == best(other["samples"]) and "texts" not in ours
    for name in ("folder", "look", "seed"):
        assert ours[name] == other[name]
    assert len(other["samples"]) == PROMPTS * K


@pytest.mark.parametrize("question", ["choice", "rrhf", "pool", "distill"])
def test_no_arm_learns_from_what_was_cut_off(
    ask, upstream, question, tmp_path, monkeypatch
):
    """Each prompt has one that ended, and one without an end that is liked better."""
    eos = upstream["sft_a"].tokenizer().eos_id

    def favoured(found):
        whole = [replace(s, ids=(7, eos), score=-99.0) for s in best(found)]
        return [*whole, *(replace(s, ids=(7, 7), score=99.0) for s in whole)]

    made = favoured(read_pool(upstream["rs_samples"].path / SAMPLES))
    write_pool(made, tmp_path / SAMPLES)
    monkeypatch.setitem(upstream, "rs_samples", SimpleNamespace(path=tmp_path))
    sampled = rejection_comparisons.sampled
    monkeypatch.setattr(
        rejection_comparisons, "sampled", lambda *given: favoured(sampled(*given))
    )
    for name, job in ask(question).items():
        learnt = job.get("lessons") or job.get("samples") or job.get("first", [])
        if name != "big":  # chosen on the road, in round 4
            assert all(s.ids[-1] == eos for s in learnt), name


def test_branches_differ_in_the_pool_the_later_mix_and_nothing_else(ask):
    jobs = ask("pool")
    bare = [without(job, "pool", "later", "beside") for job in jobs.values()]
    assert all(job == bare[0] for job in bare)
    kinds = PROFILE.rejection.kinds
    gone = PROFILE.rejection_comparisons.forgotten
    for name, job in jobs.items():
        assert job["pool"] == ("previous" if "previous" in name else "all")
        assert ("beside" in job) == (name == "road's form")
        left = {gone} if "moved on" in name else set()
        assert set(kinds) - set(job["later"]) == left
        assert all(kinds[k] == share for k, share in job["later"].items())
    rounds = [{path.parent.name for path in rms} for rms in bare[0]["judges"]]
    assert rounds == [{"v1"}, {"v2"}], "a round is judged by the models of the last"


def test_the_small_model_gets_the_same_prompts_from_both_teachers(
    ask, upstream, monkeypatch
):
    judges = []
    load = reward.load
    monkeypatch.setattr(reward, "load", lambda path: judges.append(path) or load(path))
    jobs = ask("distill")
    own, big = jobs["own"], jobs["big"]
    assert without(own, "lessons") == without(big, "lessons")
    small = upstream["rs_small"].path / "model"
    assert own["folder"] == jobs["before"]["folder"] == small
    assert [s.prompt for s in own["lessons"]] == [s.prompt for s in big["lessons"]]
    assert [s.ids for s in own["lessons"]] != [s.ids for s in big["lessons"]]
    newest = read_pool(upstream["v4"].path / "pool.json")
    assert big["lessons"] == [s for s in newest if s.round == 4] != newest
    # round 4 of the road was chosen by the reward models at the end of round 3
    assert {path.parent.name for path in judges} == {"v3"}
    faster = own["config"].optim.lr / PROFILE.rejection.optim.lr
    shape = PROFILE.comparisons.reward_models["small"]
    assert faster == pytest.approx(shape.lr / PROFILE.pretrain.optim.lr)


def test_the_newest_answers_meet_every_reward_model(ask, upstream):
    jobs = ask("fresh")
    assert list(jobs["V4"]["judges"]) == [f"RM {i}" for i in range(5)]
    first = tuple(upstream[f"rm_{x}"].path / "model" for x in ("helpful", "safety"))
    for i, name in enumerate(("SFT", "V1", "V2", "V3", "V4")):
        job = jobs[name]
        assert job["folder"].parent.name == ("sft_a" if i == 0 else f"v{i}")
        assert job["judges"]["RM 0"] == first and f"RM {i}" in job["judges"]
        for rms, (helpful, safety) in job["judges"].items():
            if rms != "RM 0":
                assert helpful.parent.name == safety.parent.name == f"v{rms[3:]}"
                assert (helpful.name, safety.name) == ("rm_helpfulness", "rm_safety")


def test_all_five_models_are_asked_the_same(ask):
    jobs = ask("gold")
    assert list(jobs) == ["SFT", "V1", "V2", "V3", "V4"]
    assert len({job["folder"] for job in jobs.values()}) == 5
    assert len({str(without(job, "folder")) for job in jobs.values()}) == 1


# The arms


def spy_on_lessons(monkeypatch):
    seen = []

    def fine_tune(model, vocabulary, lessons, *args, texts, **options):
        seen.append((list(lessons), list(texts)))

    monkeypatch.setattr(rejection_arms, "fine_tune", fine_tune)
    monkeypatch.setattr(Look, "at", lambda self, *a: {"looked": len(seen)})
    return seen


def test_a_later_round_keeps_nothing_that_was_cut_off(ask, monkeypatch):
    """Not even from the pool, where the newest reward models like it best."""
    seen = spy_on_lessons(monkeypatch)
    job = ask("pool")["pool"]
    eos = 2
    [one, *others] = job["first"]
    cut = replace(one, ids=(7, 7), score=99.0)
    monkeypatch.setattr(rejection_arms, "rescore", lambda pool, *given: list(pool))
    whole = replace(one, ids=(7, eos), score=-99.0)
    monkeypatch.setattr(rejection_arms, "sample", lambda *g, **options: [cut, whole])
    branch(**without(job, "function") | {"first": [cut, *others]})
    for lessons, _ in seen[1:]:
        [kept] = [s for s in lessons if s.prompt.id == one.prompt.id]
        assert kept == whole


def of(kind, several):
    return [s for s in several if s.prompt.kind == kind]


@pytest.mark.parametrize("arm", ["pool", "previous", "pool, moved on"])
def test_what_a_round_learns_from(ask, monkeypatch, arm):
    seen = spy_on_lessons(monkeypatch)
    job = ask("pool")[arm]
    assert branch(**without(job, "function")) == {
        f"V{r}": {"looked": r} for r in (1, 2, 3)
    }
    lessons = [several for several, texts in seen if not texts]
    assert lessons[0] == job["first"] and len(lessons) == 3
    for round, several in enumerate(lessons, start=1):
        assert len({s.prompt.id for s in several}) == len(several), "one a prompt"
        rounds = {s.round for s in several}
        if arm == "previous":
            assert rounds == {round} and len(several) == PROMPTS
        else:
            assert 1 in rounds and rounds <= set(range(1, round + 1))
            assert len(several) > PROMPTS or round == 1
    newest = [s for s in lessons[2] if s.round == 3]
    assert newest and not {s.ids for s in newest} <= {s.ids for s in lessons[0]}
    gone = PROFILE.rejection_comparisons.forgotten
    assert bool(of(gone, newest)) == ("moved on" not in arm)
    if "pool" in arm:
        asked = [{s.prompt.id for s in several} for several in lessons]
        assert asked[0] < asked[1] < asked[2], "no prompt is lost"
        assert of(gone, lessons[2]), "the pool remembers it"


def test_the_road_reads_texts_beside_and_repeats_what_is_rare(ask, monkeypatch):
    seen = spy_on_lessons(monkeypatch)
    branch(**without(ask("pool")["road's form"], "function"))
    kinds = PROFILE.rejection.kinds
    for several, texts in seen:
        tokens = sum(len(s.ids) for s in several)
        assert sum(map(len, texts)) >= PROFILE.rejection.texts * tokens
        different = len({s.prompt.id for s in several})
        for kind, share in kinds.items():
            if of(kind, several):
                assert len(of(kind, several)) >= round(share * different)


def test_the_pool_of_a_branch_is_scored_anew(ask, monkeypatch):
    """Round 1's scores are of other reward models: they must not decide."""
    seen = spy_on_lessons(monkeypatch)
    job = ask("pool")["pool"]
    job["first"] = [replace(s, score=1e6) for s in job["first"]]
    branch(**without(job, "function"))
    assert all(s.score < 1e5 for several, _ in seen[1:] for s in several)


def test_the_judge_looks_at_what_came_out_of_the_training(ask, monkeypatch):
    """The weights themselves stand for what the judge sees."""

    def weights(self, model, *args):
        return torch.cat([p.flatten() for p in model.state_dict().values()])

    monkeypatch.setattr(Look, "at", weights)
    job = without(ask("choice")["best"], "function")
    before, after = looked_at(job["folder"], FEW)["sampled"], tuned(**job)
    assert torch.equal(after, tuned(**job)), "the same arm twice is the same"
    others = [
        tuned(**job | {"texts": []}),
        tuned(**job | {"lessons": job["lessons"][:4]}),
        tuned(**job | {"seed": 9}),
        ranking(**without(ask("rrhf")["RRHF"], "function")),
        before,
    ]
    assert not any(torch.equal(after, other) for other in others)
    for i, one in enumerate(others):
        assert not any(torch.equal(one, other) for other in others[:i])


def test_the_judge_sees_test_prompts_and_greedy_answers_once(upstream, monkeypatch):
    calls = []

    def spy(model, vocabulary, village, asked, *, temperature, n, **options):
        calls.append((temperature, n, {p.split for p in asked}))
        return unwrapped({"kind": []})

    monkeypatch.setattr(rejection_arms, "judged", spy)
    looked_at(upstream["v2"].path / "model", FEW)
    assert calls == [(1.0, 2, {"test"})] * 9 + [(0.0, 1, {"test"})] * 9


def test_a_kind_with_few_prompts_is_asked_more_often(upstream, monkeypatch):
    calls = {}

    def spy(model, vocabulary, village, asked, *, n, **options):
        calls[asked[0].kind] = (len(asked), n)
        return unwrapped({"kind": []})

    monkeypatch.setattr(rejection_arms, "judged", spy)
    look = replace(FEW, per_kind=10, answers=35)
    look.at(*rejection_arms._load(upstream["v1"].path / "model"), 1.0)
    assert calls["sum"] == (10, 4) and calls["three"] == (6, 6)


def test_reward_models_are_tried_on_new_answers_to_held_out_prompts(
    ask, monkeypatch, upstream
):
    prompt = prompts(VILLAGE, "sum", "test", 1)[0]
    pairs = [
        Comparison(prompt.turns, f"{i}.", f"{i + 50}.", prompt=prompt) for i in range(6)
    ]
    asked = []

    def collect(village, models, vocabulary, ground, n, c, *, split, seed):
        asked.append((ground, n, split, len(models)))
        return Collection([replace(x, ground=ground) for x in pairs])

    monkeypatch.setattr(rejection_arms, "collect", collect)
    job = without(ask("fresh")["V4"], "function")
    job["judges"] = {**job["judges"], "again": job["judges"]["RM 2"]}
    found = accuracies(**job)
    assert [x[0] for x in asked] == ["helpfulness", "safety"]
    assert all(split == "test" and models == 1 for _, _, split, models in asked)
    n = PROFILE.rejection_comparisons.fresh_pairs
    assert sum(x[1] for x in asked) == n
    for ground in ("helpfulness", "safety"):
        ranked = found[ground]["right"]
        assert set(ranked) == set(job["judges"])
        assert 0 <= found[ground]["ceiling"] <= 1
        for right in ranked.values():
            assert len(right) == 6 and set(right) <= {0, 0.5, 1}
        assert ranked["again"] == ranked["RM 2"]
    # each ground by its own reward model
    helpful, safe = job["judges"]["RM 2"]
    model = reward.load(safe)
    words = upstream["sft_a"].tokenizer()
    right = rejection_arms.scored(model, words, pairs)["right"].tolist()
    assert found["safety"]["right"]["RM 2"] == right


# The stages


def test_a_stage_holds_what_was_seen_of_each_arm(upstream, tmp_path, monkeypatch):
    """Side by side the arms go through pickle; what they give goes into JSON."""

    def run(function, jobs):
        jobs = pickle.loads(pickle.dumps(jobs))
        return {name: function(**job) for name, job in jobs.items()}

    monkeypatch.setattr(side_by_side, "run", run)
    made = rejection_comparisons.build(PROFILE, 0, upstream, tmp_path, question="rrhf")
    assert list(made) == ["RRHF", "best of K"]
    assert json.loads(json.dumps(made)) == made
    ours, other = (unwrapped(x) for x in made.values())
    assert gain(ours, other, "helpfulness").n == 8
    assert Counter(ours["kind"]) == dict.fromkeys(ours["kind"], 1)
