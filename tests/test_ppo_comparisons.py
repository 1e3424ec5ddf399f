"""Comparisons beside PPO: an arm differs from its control in one thing only."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cria import (
    checkpoints,
    config,
    ppo_arms,
    ppo_comparisons,
    reward,
    stages,
    tokenizer,
    world,
)
from cria.config import ConfigError, ModelConfig
from cria.judged import gold, unwrapped
from cria.model import Llama
from cria.ppo_arms import REWARDS, View, arm, gold_of, scorer, seen
from cria.ppo_comparisons import QUESTIONS, _Given, build, build_gold
from cria.reward import RewardModel
from cria.stage_build import _Sections
from cria.world.prompts import prompts

SMOKE = config.load("smoke")
VILLAGE = world.load()
PIECES = 400
SHAPE = ModelConfig(16, 1, 2, 1, vocab_size=PIECES, multiple_of=8, max_seq_len=1024)
PROFILE = replace(
    SMOKE,
    ppo=replace(SMOKE.ppo, max_new_tokens=6, dtype="float32"),
    rejection=replace(SMOKE.rejection, max_new_tokens=6, samples=2, dtype="float32"),
    ppo_comparisons=replace(
        SMOKE.ppo_comparisons, gold_per_kind=1, gold_answers=2, few_prompts=4
    ),
)
C = PROFILE.ppo_comparisons
ANSWERS = C.batch_size * C.iterations


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """Untrained models and reward models, kept as the stages keep them."""
    root = tmp_path_factory.mktemp("stages")
    kinds = ("sum", "fact", "rhyme", "harm", "tell")
    asked = [p for kind in kinds for p in prompts(VILLAGE, kind, "train")[:40]]
    texts = [turn for p in asked for _, turn in p.turns]
    words = tokenizer.train([*texts, "0 1 2 3 4 5 6 7 8 9"], PIECES, root / "words")
    made = {}
    for i, name in enumerate(("sft_a", "v1", "v2", "v3", "v4", "ppo_v5")):
        path = root / name
        checkpoints.save(Llama(SHAPE, seed=i), path / "model", words)
        for j, ground in enumerate(("helpfulness", "safety")):
            rm = RewardModel(Llama(SHAPE, seed=10 + i), seed=20 + 2 * i + j)
            reward.save(rm, path / f"rm_{ground}", words)
        made[name] = SimpleNamespace(
            path=path,
            metrics={"start": "v3"},
            tokenizer=lambda: words,
            model=lambda path=path: checkpoints.load(path / "model"),
        )
    for i, name in enumerate(("rm_helpful", "rm_safety", "rm_plain")):
        rm = RewardModel(Llama(SHAPE, seed=40), seed=50 + i)
        reward.save(rm, root / name / "model", words)
        made[name] = SimpleNamespace(path=root / name)
    made["ppo_order"] = SimpleNamespace(metrics={"PPO": {"of": "another stage"}})
    return made


@pytest.fixture
def ask(upstream):
    """question → the jobs of its arms, and what it borrows."""
    return lambda question: QUESTIONS[question](_Given(PROFILE, 0, upstream))


def differ(one: dict, other: dict) -> set[str]:
    """Which arguments differ; of a config, which of its knobs."""
    found = set()
    for key in one.keys() | other.keys():
        a, b = one.get(key), other.get(key)
        if key == "config":
            found |= {k for k in vars(a) if vars(a)[k] != vars(b)[k]}
        elif a != b:
            found.add(key)
    return found


def test_arms_differ_from_each_other_in_one_thing(ask):
    order, gate, beta = (ask(q)[1] for q in ("order", "gate", "beta"))
    control = order["PPO"]
    assert {"gate", *gate} == set(REWARDS)
    for name, job in gate.items():
        assert differ(control, job) == {"rewarded"} and job["rewarded"] == name
    for name in ("both", "rejection sampling"):
        assert differ(control, order[name]) == {"prompts", "iterations"}
    plain = [job for name, job in beta.items() if name.startswith("plain")]
    assert [job["config"].beta for job in plain] == list(C.betas)
    assert all(differ(plain[0], job) == {"beta"} for job in plain[1:])
    [ours] = [job for name, job in beta.items() if name.startswith("ours")]
    assert differ(plain[0], ours) == {"judges"}
    assert plain[0]["judges"][0].parent.name == "rm_plain"
    assert plain[0]["config"].text_coef == 0 and not plain[0]["full"]


def test_the_gate_arm_is_the_ppo_of_the_other_stage(ask):
    borrowed, _ = ask("gate")
    assert borrowed == {"gate": {"of": "another stage"}}


def test_nothing_is_stopped_early(ask):
    for job in ask("order")[1].values():
        c = job["config"]
        assert c.kl_budget > 1e6 and c.patience > C.iterations


def test_as_many_answers_in_every_arm(ask):
    order = ask("order")[1]
    found = {name: arm(**job | {"full": False}) for name, job in order.items()}
    for name, seen_ in found.items():
        assert seen_["looks"][-1]["answers"] == ANSWERS, name
    assert found["PPO"]["looks"][0]["answers"] == 0
    assert found["both"]["looks"][0]["answers"] == ANSWERS // 2
    assert [len(f["rows"]) for f in found.values()] == [3, 2, 0]


def test_the_policy_that_is_looked_at_in_the_end_is_the_last(ask, monkeypatch):
    """Also where an earlier look had the better score."""
    looked, trained = [], []
    monkeypatch.setattr(
        ppo_arms, "viewed", lambda policy, *rest: looked.append(policy) or {}
    )
    monkeypatch.setattr(
        ppo_arms,
        "seen",
        lambda policy, *rest, **options: trained.append(_copy(policy)) or _empty(),
    )
    job = ask("order")[1]["PPO"]
    monkeypatch.setitem(REWARDS, "worse", _worse())
    arm(**job | {"rewarded": "worse"})
    assert len(trained) == 3
    same = [
        all(torch.equal(a[k], looked[0].state_dict()[k]) for k in a) for a in trained
    ]
    assert same == [False, False, True]


def _copy(policy):
    return {k: w.clone() for k, w in policy.state_dict().items()}


def _empty():
    return unwrapped({"kind": [], "prompt": []})


def _worse():
    """A reward that falls with every call: the first look stays the best."""
    calls = []

    def combine(safety, helpful, is_safety, gate):
        calls.append(1)
        return torch.arange(len(safety)).float() - 1000.0 * len(calls)

    return combine


def test_one_reward_from_two():
    safety, helpful = torch.tensor([-3.0, 2.0, 2.0]), torch.tensor([5.0, 6.0, 7.0])
    harm = torch.tensor([False, True, False])
    found = {n: f(safety, helpful, harm, 0.15).tolist() for n, f in REWARDS.items()}
    probabilities = found.pop("sum of σ")
    assert probabilities == pytest.approx(
        [0.0474 + 0.9933, 0.8808 + 0.9975, 1.8799], abs=1e-3
    )
    assert found == {
        "gate": [-3.0, 2.0, 7.0],
        "sum": [2.0, 8.0, 9.0],
        "helpfulness": [5.0, 6.0, 7.0],
    }


@pytest.fixture
def parts(upstream):
    rms = tuple(
        reward.load(upstream[name].path / "model")
        for name in ("rm_helpful", "rm_safety")
    )
    village_prompts = [
        prompts(VILLAGE, kind, "test")[0] for kind in ("harm", "sum", "borderline")
    ]
    return upstream["sft_a"], rms, village_prompts


def view(parts, policy, n=4, seed=2):
    sft, rms, asked = parts
    return seen(
        policy,
        sft.model().eval(),
        rms,
        sft.tokenizer(),
        VILLAGE,
        asked,
        PROFILE.ppo,
        n=n,
        seed=seed,
    )


def test_what_is_seen_is_a_row_a_prompt(parts):
    sft, _, asked = parts
    table = view(parts, sft.model().eval())
    assert table["kind"].tolist() == [p.kind for p in asked]
    assert table["prompt"].tolist() == [p.question for p in asked]
    assert (table["kl"].abs() < 1e-5).all(), "to itself"
    assert (table["length"] > 0).all() and (table["length"] <= 6).all()
    other = view(parts, Llama(SHAPE, seed=9).eval())
    assert (other["kl"] > 0).all()


def test_the_score_is_that_of_the_deciding_reward_model(parts):
    sft, *_ = parts
    table = view(parts, sft.model().eval(), n=1)
    gate = PROFILE.ppo.safety_gate
    edge = torch.tensor(gate / (1 - gate)).log().item()
    for row in table.itertuples():
        safe = row.kind == "harm" or row.r_safety < edge
        assert row.score == (row.r_safety if safe else row.r_helpful)


def test_gold_is_what_was_asked_for():
    table = unwrapped(
        {"kind": ["harm", "sum"], "helpfulness": [0.1, 0.2], "safety": [0.9, 1.0]}
    )
    assert gold_of(table).tolist() == [0.9, 0.2]


def test_the_scorer_gives_one_raw_number_an_answer(parts):
    sft, rms, asked = parts
    answers = [[5, 6, 2], [7, 2], [8, 9, 2]]
    score = scorer(rms, sft.tokenizer(), REWARDS["helpfulness"], 0.15)
    whole = score(asked, answers)
    alone = [score([p], [a])[0] for p, a in zip(asked, answers, strict=True)]
    assert whole == pytest.approx(alone, abs=0.05)  # bfloat16, other neighbours


def test_stages_read_what_they_name(upstream, monkeypatch, tmp_path):
    """All that a question reads is in its key; its result can be written down."""
    monkeypatch.setattr(
        ppo_comparisons.side_by_side,
        "run",
        lambda function, jobs: {n: function(**job) for n, job in jobs.items()},
    )
    for question in QUESTIONS:
        stage = stages.STAGES[f"ppo_{question}"]
        sections = _Sections(question, stage, PROFILE)
        given = {name: upstream[name] for name in stage.needs}
        found = build(sections, 0, given, tmp_path, **stage.options)
        assert json.loads(json.dumps(found)).keys() == found.keys()
    stage = stages.STAGES["ppo_gold"]
    sections = _Sections("ppo_gold", stage, PROFILE)
    given = {name: upstream[name] for name in stage.needs}
    found = build_gold(sections, 0, given, tmp_path)
    tables = {name: unwrapped(columns) for name, columns in found.items()}
    assert list(tables) == ["SFT", "start", "V5"]
    assert (tables["start"]["kl"].abs() < 1e-5).all() and (tables["V5"]["kl"] > 0).any()
    assert set(gold(tables["V5"])) == {"helpfulness", "safety", "false refusals"}


def test_a_view_asks_every_kind_as_often(parts, upstream):
    sft, rms, _ = parts
    asked = {}

    def counted(policy, start, rms, vocabulary, village, several, config, *, n, seed):
        asked[several[0].kind] = len(several) * n
        return _empty()

    wanted = View(4, 2, per_kind=3, answers=10, seed=0)
    model = sft.model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_arms, "seen", counted)
        ppo_arms.viewed(model, model, rms, sft.tokenizer(), PROFILE.ppo, wanted)
    assert len(asked) == 9 and all(10 <= n < 14 for n in asked.values())


def test_the_config_is_checked():
    with pytest.raises(ConfigError, match="does not divide"):
        replace(C, minibatch_size=7)
    with pytest.raises(ConfigError, match="betas"):
        replace(C, betas=(-0.1,))
