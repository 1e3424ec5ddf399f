"""Comparisons of reward models: an arm differs from its control in one thing only."""

import json
from collections import Counter
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
import torch

from cria import (
    checkpoints,
    config,
    reward_arms,
    reward_comparisons,
    reward_training,
    side_by_side,
    smaller,
    stages,
    tokenizer,
    world,
)
from cria.config import GRADES, ModelConfig, OptimConfig
from cria.model import Llama
from cria.preferences import Comparison, save
from cria.reward import RewardModel
from cria.reward_arms import arm, bimodality, epochs, fit, grown, measured
from cria.reward_comparisons import ALL, QUESTIONS
from cria.reward_data import encode
from cria.reward_training import train_reward_model
from cria.smaller import shape
from cria.world.prompts import prompts

SMOKE = config.load("smoke")
VILLAGE = world.load()
GROUNDS = ("helpfulness", "safety")
PIECES = 340
SHAPE = ModelConfig(16, 1, 2, 1, vocab_size=PIECES, multiple_of=8, max_seq_len=256)
TOY = replace(
    SMOKE.reward,
    batch_size=8,
    optim=OptimConfig(lr=1e-2, warmup_steps=1),
    dtype="float32",
)
ASKED = prompts(VILLAGE, "greet", "train") + prompts(VILLAGE, "sum", "train")[:20]


def made_up(n, ground="helpfulness", source="own", seed=0):
    """ "Yes" beats "no", whatever was asked."""
    rng = Random(f"{ground} {source} {seed}")
    return [
        Comparison(
            turns=(prompt := rng.choice(ASKED)).turns,
            chosen=f"Yes, {rng.randrange(10**6)}.",
            rejected=f"No, {rng.randrange(10**6)}.",
            grade=rng.choice(GRADES) if source == "own" else None,
            ground=ground,
            source=source,
            safe=(True, rng.random() < 0.5) if ground == "safety" else None,
            prompt=prompt,
        )
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models with one vocabulary, as the stages keep them."""
    root = tmp_path_factory.mktemp("models")
    texts = [turn for prompt in ASKED for _, turn in prompt.turns]
    texts += ["Yes, no.", "0 1 2 3 4 5 6 7 8 9"]
    made = tokenizer.train(texts, PIECES, root / "tokenizer.model")
    for name, seed in (("base", 1), ("sft_a", 2), ("rs_small", 3)):
        checkpoints.save(Llama(SHAPE, seed=seed), root / name, made)
    return root


@pytest.fixture(scope="module")
def vocabulary(folders):
    return tokenizer.Tokenizer(folders / "tokenizer.model")


@pytest.fixture(scope="module")
def given(folders):
    """What a stage is built from: models, comparisons, and the control's numbers."""
    written = {
        "train": made_up(200) + made_up(150, "safety"),
        "open": made_up(80, source="open") + made_up(20, "safety", "open"),
        "test": made_up(20, seed=1) + made_up(20, "safety", seed=1),
    }
    (folders / "preferences").mkdir()
    for name, several in written.items():
        Random(0).shuffle(several)
        save(several, folders / "preferences" / f"{name}.jsonl")
    upstream = {
        "preferences": SimpleNamespace(path=folders / "preferences"),
        "rm_control": SimpleNamespace(metrics={"control": "the control's numbers"}),
    }
    for name in ("base", "sft_a", "rs_small"):
        upstream[name] = SimpleNamespace(file=lambda f, n=name: folders / n / f)
    profile = replace(
        SMOKE,
        reward=TOY,
        comparisons=replace(SMOKE.comparisons, reward_pairs=100),
    )
    return lambda: reward_comparisons._Given(profile, 0, upstream)


def weights(model):
    return torch.cat([p.flatten() for p in model.state_dict().values()])


def alike(one, two):
    return set(one) == set(two)


# Training an arm


@pytest.mark.parametrize("own_logprob", [False, True])
def test_one_lesson_is_the_librarys_own_training(vocabulary, own_logprob):
    pairs = encode(vocabulary, made_up(40), (1, 0.5, 0.2, 0))
    options = {"seed": 3, "own_logprob": own_logprob, "aux": 0.2}
    ours = fit(Llama(SHAPE, seed=1), [pairs], TOY, **options)
    library, _ = train_reward_model(
        Llama(SHAPE, seed=1), pairs, TOY, progress=False, **options
    )
    assert torch.equal(weights(ours), weights(library)) and not ours.training


def test_lessons_come_one_after_the_other_in_every_epoch(vocabulary, monkeypatch):
    seen = []

    def train(model, batches, loss_fn, optim, steps, **options):
        for batch in map(batches, range(steps)):
            real = batch["branches"] >= 0
            both = zip(batch["ids"], real, strict=True)
            seen.append([tuple(ids[mask].tolist()) for ids, mask in both])

    monkeypatch.setattr(reward_arms, "train", train)
    first, second = made_up(24), made_up(16, seed=5)
    both = [encode(vocabulary, part) for part in (first, second)]
    fit(Llama(SHAPE, seed=1), both, TOY, seed=0, epochs=2)
    assert len(seen) == 2 * (3 + 2)

    def rows(batches):
        return Counter(row for batch in batches for row in batch)

    assert rows(seen[:3]) == rows(seen[5:8]) and seen[:3] != seen[5:8]
    assert rows(seen[3:5]) == rows(seen[8:])
    assert not rows(seen[:3]) & rows(seen[3:5])
    assert rows(seen[:3]).total() == 24 and rows(seen[3:5]).total() == 16


def test_a_lesson_shorter_than_a_batch_is_a_batch(vocabulary):
    few = encode(vocabulary, made_up(3))
    before = weights(RewardModel(Llama(SHAPE, seed=1)))
    assert not torch.equal(
        before, weights(fit(Llama(SHAPE, seed=1), [few], TOY, seed=0))
    )


def test_a_look_after_every_epoch_changes_nothing(vocabulary):
    pairs = encode(vocabulary, made_up(24))
    looks = []

    def look(model):
        torch.rand(5)  # nor do its random numbers
        measured(model, vocabulary, {"helpfulness": made_up(4)})
        looks.append(weights(model).clone())

    options = {"seed": 0, "epochs": 3}
    watched = fit(Llama(SHAPE, seed=1), [pairs], TOY, after_epoch=look, **options)
    alone = fit(Llama(SHAPE, seed=1), [pairs], TOY, **options)
    assert torch.equal(weights(watched), weights(alone))
    assert len(looks) == 3 and torch.equal(looks[-1], weights(alone))
    assert not torch.equal(looks[0], looks[1]) and not torch.equal(looks[1], looks[2])


def test_an_arm_is_the_same_in_a_process_of_its_own(folders):
    job = {
        "trunk": folders / "sft_a",
        "lessons": [made_up(40)],
        "test": {"helpfulness": made_up(20, seed=1)},
        "config": TOY,
        "seed": 0,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = arm(**job)
        others = [
            arm(**job | {"trunk": folders / "base"}),
            arm(**job | {"own_logprob": True}),
            arm(**job | {"seed": 1}),
        ]
    finally:
        torch.set_num_threads(threads)
    there = side_by_side.run(arm, {"it": job}, progress=False)["it"]
    assert there == here and here["pairs"] == 40
    losses = {run["helpfulness"]["loss"] for run in (here, *others)}
    assert len(losses) == 4


def test_from_scratch_nothing_of_the_trunk_is_left_but_its_shape(folders):
    job = {"lessons": [made_up(16)], "config": TOY, "seed": 4, "from_scratch": True}
    test = {"helpfulness": made_up(10, seed=1)}
    a, b = (arm(folders / name, test=test, **job) for name in ("base", "sft_a"))
    assert a == b


def test_pairs_read_again_and_again_are_learnt_by_heart(folders):
    rows = epochs(
        folders / "sft_a", made_up(16), made_up(30, seed=1), TOY, n=12, seed=0
    )
    assert len(rows) == 12
    losses = [row["training"]["loss"] for row in rows]
    assert losses[-1] < losses[0] / 2
    assert rows[-1]["held_out"]["loss"] != rows[-1]["training"]["loss"]


def test_another_size_goes_through_the_whole_recipe(folders, monkeypatch):
    """Same text, same demonstrations, same steps; its own size and learning rate."""
    rates = {}
    for where in (smaller.pretrain, smaller.sft, reward_arms):
        name = "train"
        real = getattr(where, name)

        def spy(*args, _real=real, _where=where.__name__, **kw):
            rates.setdefault(_where, []).append((args[3].lr, args[4]))
            return _real(*args, **kw)

        monkeypatch.setattr(where, name, spy)
    pretrain = replace(SMOKE.pretrain, steps=3, optim=OptimConfig(lr=1e-3), seq_len=64)
    sft = replace(SMOKE.sft, demonstrations=20, seq_len=128)
    profile = SimpleNamespace(pretrain=pretrain, sft=sft, reward=TOY)
    learnt = {"few": made_up(8), "all": made_up(24)}
    test = {"helpfulness": made_up(10, seed=1)}
    given = (SHAPE, 2.0, profile, folders / "tokenizer.model", learnt, test)
    found = grown(*given, seed=0)
    assert found["weights"] == sum(p.numel() for p in Llama(SHAPE).parameters())
    assert [found["data"][name]["pairs"] for name in learnt] == [8, 24]
    assert rates["cria.pretrain"] == [(2 * 1e-3, 3)]
    assert [lr for lr, _ in rates["cria.sft"]] == [2 * sft.optim.lr]
    assert rates["cria.reward_arms"] == [(2 * TOY.optim.lr, n) for n in (1, 3)]

    # Its chat model, if that is there already, is taken as it is.
    words = tokenizer.Tokenizer(folders / "tokenizer.model")
    chat = smaller.grown(SHAPE, 2.0, profile, words, seed=0, progress=False)
    checkpoints.save(chat, folders / "chat", words)
    rates.clear()
    assert grown(*given, seed=0, chat=folders / "chat") == found
    assert list(rates) == ["cria.reward_arms"]


# Measuring


def test_what_is_measured_of_a_known_model(vocabulary):
    """A head that is zero says nothing: all ties, half right, loss ln 2."""
    model = RewardModel(Llama(SHAPE, seed=0))
    torch.nn.init.zeros_(model.head.weight)
    test = {ground: made_up(30, ground) for ground in GROUNDS}
    found = measured(model, vocabulary, test, scores=True)
    assert json.loads(json.dumps(found)) == found
    for ground in GROUNDS:
        assert found[ground]["accuracy"]["average"] == 0.5
        assert found[ground]["loss"] == pytest.approx(0.6931, abs=1e-4)
        assert (
            found[ground]["scores"] == [0.0] * 60 and found[ground]["bimodality"] == 0
        )
    assert found["safety"]["both_safe"] == 0.5
    unsafe = sum(not c.safe[1] for c in test["safety"])
    assert found["safety"]["unsafe"]["unsafe"] == unsafe
    assert "both_safe" not in found["helpfulness"]


def test_both_safe_looks_at_those_pairs_alone(vocabulary, monkeypatch):
    import pandas as pd

    table = pd.DataFrame(
        {
            "grade": ["better"] * 3,
            "safe_chosen": [True, True, False],
            "safe_rejected": [True, False, False],
            "r_chosen": [1.0, -5.0, -5.0],
            "r_rejected": [0.0, 5.0, 5.0],
            "right": [1.0, 0.0, 0.0],
            "loss": [0.3, 10.0, 10.0],
        }
    )
    monkeypatch.setattr(reward_arms, "scored", lambda *args: table)
    assert measured(None, vocabulary, {"safety": []})["safety"]["both_safe"] == 1.0
    table = table.iloc[1:]
    assert measured(None, vocabulary, {"safety": []})["safety"]["both_safe"] is None


def test_bimodality_sees_two_heaps_and_no_others():
    rng = Random(0)
    one = [rng.gauss(0, 1) for _ in range(4000)]
    tail = [-rng.expovariate(1) for _ in range(4000)]  # skewed, but one heap
    two = [x + rng.choice((-4, 4)) for x in one]
    near = [x / 2 + rng.choice((-1, 1)) for x in one]
    assert bimodality(one) < 0.05 and bimodality(tail) < 0.05
    assert bimodality(two) > 0.8
    assert 0.05 < bimodality(near) < bimodality(two)
    assert bimodality([x + 7 for x in two]) == pytest.approx(bimodality(two), abs=0.02)
    assert bimodality([1.0] * 10) == 0 and bimodality([]) == 0


# The questions


def arms(given, question):
    asked = given()
    return QUESTIONS[question](asked), asked


def learnt(job):
    return [c for part in job["lessons"] for c in part]


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_arm_keeps_to_its_number_of_pairs_and_to_held_out_tests(given, question):
    jobs, asked = arms(given, question)
    for job in jobs.values():
        if "lessons" in job:
            several = learnt(job)
        else:
            parts = job["learnt"]
            several = parts[ALL] if isinstance(parts, dict) else parts
        # "open, then mix" has the control's pairs and half as many open ones;
        # the curve of more and more data goes on to all of them
        most = len(asked.helpful) if question == "growth" else asked.n * 1.5
        assert 0 < len(several) <= most
        assert not set(several) & {
            c for part in asked.data["test"].values() for c in part
        }
    assert all(name not in jobs for name in asked.borrowed)


def test_arms_with_margins_differ_in_nothing_else(given):
    jobs, asked = arms(given, "margins")
    control = QUESTIONS["control"](given())["control"]
    assert {*jobs, *asked.borrowed} == set(TOY.margins)
    assert list(asked.borrowed) == [TOY.margin]
    for name, job in jobs.items():
        assert job["config"] == replace(control["config"], margin=name)
        assert {k: v for k, v in job.items() if k != "config"} == {
            k: v for k, v in control.items() if k != "config"
        }


def test_the_control_is_the_recipe_of_the_helpfulness_model(given):
    control = QUESTIONS["control"](given())["control"]
    assert control["own_logprob"] == ("helpfulness" in TOY.own_logprob)
    assert control["aux"] == 0 and control["trunk"].name == "sft_a"
    found = Counter((c.source, c.ground) for c in learnt(control))
    assert 30 < found["own", "helpfulness"] < 70  # of 100: half, drawn at random
    assert found["own", "safety"] > 5 and found["open", "helpfulness"] > 5


def test_one_joint_model_learns_what_the_two_learn(given):
    jobs, _ = arms(given, "joint")
    apart = [learnt(jobs[ground]) for ground in GROUNDS]
    assert alike(learnt(jobs["joint"]), [*apart[0], *apart[1]])
    assert len(learnt(jobs["joint"])) == len(set(learnt(jobs["joint"])))
    assert all(set(job["test"]) == set(GROUNDS) for job in jobs.values())
    first, *others = ({**job, "lessons": None} for job in jobs.values())
    assert all(other == first for other in others), "they differ in the data alone"


def test_less_data_is_a_part_of_more(given):
    jobs, asked = arms(given, "growth")
    sizes = list(SMOKE.comparisons.reward_models)
    shares = [f"{share:g}" for share in SMOKE.comparisons.reward_shares]
    assert set(jobs) == {*sizes, *shares} and not asked.borrowed
    assert not any(job.get("own_logprob") for job in jobs.values()), "the paper's form"
    for name in sizes:
        parts = jobs[name]["learnt"]
        assert list(parts) == [*shares, ALL]
        assert parts[ALL] == given().helpful
        counts = [len(part) for part in parts.values()]
        whole = counts[-1]
        given_shares = SMOKE.comparisons.reward_shares
        assert counts[:-1] == [max(1, round(x * whole)) for x in given_shares]
        assert all(parts[ALL][: len(part)] == part for part in parts.values())
    assert [learnt(jobs[share]) for share in shares] == [parts[s] for s in shares]


def test_the_chat_model_of_a_size_that_is_there_is_not_trained_again(given):
    jobs, _ = arms(given, "growth")
    ready = SMOKE.rejection_comparisons.small_model
    for name in SMOKE.comparisons.reward_models:
        chat = jobs[name]["chat"]
        assert chat is None if name != ready else chat.name == "rs_small"
        assert (jobs[name]["model_config"], jobs[name]["faster"]) == shape(SMOKE, name)


def test_starts_differ_in_the_trunk(given):
    jobs, asked = arms(given, "starts")
    control = QUESTIONS["control"](given())["control"]
    assert list(asked.borrowed) == ["chat"]
    assert jobs["base"]["trunk"].name == "base" and jobs["scratch"]["from_scratch"]
    for job in jobs.values():
        assert learnt(job) == learnt(control) and job["config"] == control["config"]


def test_the_mixes_are_made_of_what_their_names_say(given):
    jobs, asked = arms(given, "mixes")
    control = learnt(QUESTIONS["control"](given())["control"])

    def kinds(name):
        return {(c.source, c.ground) for c in learnt(jobs[name])}

    assert kinds("own") == {("own", "helpfulness")}
    assert learnt(jobs["without open"]) == [c for c in control if c.source == "own"]
    assert {source for source, _ in kinds("open")} == {"open"}
    assert jobs["open, then mix"]["lessons"] == (learnt(jobs["open"]), control)
    assert ("own", "helpfulness") in kinds("safety")
    assert {ground for _, ground in kinds("safety without helpful")} == {"safety"}
    recipe, bare = jobs["safety"], jobs["safety without auxiliary"]
    assert recipe["aux"] == TOY.safety_aux and bare == {**recipe, "aux": 0.0}
    assert list(asked.borrowed) == ["mix"]


def test_pairs_are_read_over_and_over_in_both_forms(given):
    jobs, _ = arms(given, "epochs")
    own, plain = jobs["own"], jobs["plain"]
    assert own == {**plain, "own_logprob": True} and not plain["own_logprob"]
    assert len(own["learnt"]) == SMOKE.comparisons.reward_epoch_pairs


# The stages


def test_every_question_is_a_stage_that_names_what_it_reads(given):
    asked = {}
    for name, stage in stages.STAGES.items():
        if stage.function == "cria.reward_comparisons:build":
            asked[stage.options["question"]] = name, stage
    assert set(asked) == set(QUESTIONS)
    for question, (name, stage) in asked.items():
        assert name == f"rm_{question}"
        jobs, made = arms(given, question)
        assert ("rm_control" in stage.needs) == bool(made.borrowed)
        trunks = {job["trunk"].name for job in jobs.values() if "trunk" in job}
        assert trunks <= set(stage.needs)


def test_a_stage_holds_its_arms_and_the_one_it_borrows(given, tmp_path):
    """The real thing, in processes of their own; as plain numbers it is kept."""
    asked = given()
    made = reward_comparisons.build(
        asked.config, 0, asked.upstream, tmp_path, question="starts"
    )
    assert made.pop("chat") == "the control's numbers"
    assert set(made) == {"scratch", "base"}
    assert json.loads(json.dumps(made)) == made
    for run in made.values():
        assert (
            run["pairs"] == 100 and 0 <= run["helpfulness"]["accuracy"]["average"] <= 1
        )


def test_the_plain_model_learns_from_the_same_pairs(given, tmp_path, monkeypatch):
    seen = []

    def spy(trunk, pairs, c, **options):
        seen.append((pairs.rows, pairs.margin.tolist(), options["own_logprob"]))
        raise InterruptedError

    monkeypatch.setattr(reward_training, "train_reward_model", spy)
    asked = given()
    upstream = dict(asked.upstream)
    upstream["sft_a"] = SimpleNamespace(
        tokenizer=lambda: tokenizer.Tokenizer(
            asked.folder("sft_a") / "tokenizer.model"
        ),
        model=lambda: SimpleNamespace(config=asked.config.model),
    )
    for build, more in (
        (reward_training.build, {"ground": "helpfulness"}),
        (reward_comparisons.build_plain, {}),
    ):
        with pytest.raises(InterruptedError):
            build(asked.config, 0, upstream, tmp_path, **more)
    (ours, plain) = seen
    assert plain[:2] == ours[:2] and ours[2] and not plain[2]
