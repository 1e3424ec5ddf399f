"""The pool: sampled and scored as everywhere else, each answer once, kept whole."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cria import (
    chat,
    evaluate,
    reward,
    sample_pool,
    sample_pool_stage,
    stages,
    tokenizer,
    world,
)
from cria import config as configs
from cria.best_of_n import expected_best
from cria.config import BestOfNConfig, ModelConfig
from cria.model import Llama
from cria.reward import RewardModel
from cria.sample_pool import load, save
from cria.sample_pool_stage import asked, own_logprob
from cria.sampling import generate
from cria.world.judge import judge
from cria.world.prompts import prompts

VILLAGE = world.load()
PIECES = 340
SHAPE = ModelConfig(16, 1, 2, 1, vocab_size=PIECES, multiple_of=8, max_seq_len=256)
CONFIG = BestOfNConfig(
    prompts=4, samples=(1, 6), temperatures=(0.9, 0.1), top_p=1.0, max_new_tokens=6
)
ASKED = [
    prompts(VILLAGE, kind, "test")[0] for kind in ("sum", "harm", "borderline", "harm")
]
SCORES = ("helpful", "safety", "plain")
GATE = 0.15


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    texts = [text for prompt in ASKED for _, text in prompt.turns]
    path = tmp_path_factory.mktemp("words") / "tokenizer.model"
    return tokenizer.train([*texts, "0 1 2 3 4 5 6 7 8 9"], PIECES, path)


@pytest.fixture(scope="module")
def speaker():
    model = Llama(SHAPE, seed=1)
    with torch.no_grad():
        model.output.weight *= 40  # so that a cold model repeats itself
        model.output.weight[2] *= 1.3  # EOS, now and then
    return model


@pytest.fixture(scope="module")
def judges():
    models = {
        name: RewardModel(Llama(SHAPE, seed=i), own_logprob=name == "helpful", seed=i)
        for i, name in enumerate(SCORES, 2)
    }
    with torch.no_grad():
        models["safety"].head.weight *= 6  # scores on both sides of the gate
    return models


@pytest.fixture(scope="module")
def single_precision():
    with pytest.MonkeyPatch.context() as patch:
        for module in (reward, sample_pool_stage):
            patch.setattr(module, "pick_dtype", lambda _: torch.float32)
        yield


def make(speaker, vocabulary, judges, **changes):
    given = {"config": CONFIG, "gate": GATE, "seed": 3} | changes
    config = given.pop("config")
    return sample_pool_stage.sample_pool(
        speaker, vocabulary, judges, VILLAGE, ASKED, config, **given
    )


@pytest.fixture(scope="module")
def pool(speaker, vocabulary, judges, single_precision):
    return make(speaker, vocabulary, judges)


def each(pool):
    T, P, M = pool.answer.shape
    return [(t, p, m) for t in range(T) for p in range(P) for m in range(M)]


# Sampling


def test_it_holds_what_the_model_says_at_each_temperature(pool, speaker, vocabulary):
    assert pool.temperatures == (0.1, 0.9)  # rising, whatever the config's order
    assert pool.answer.shape == (2, 4, 6)
    for t, temperature in enumerate(pool.temperatures):
        said = evaluate.answer(
            speaker,
            vocabulary,
            ASKED,
            temperature=temperature,
            n=6,
            seed=3,
            max_new_tokens=6,
        )
        for i, (p, m) in enumerate((p, m) for p in range(4) for m in range(6)):
            assert pool.text(t, p, m) == said[i].text
            assert pool.finished[t, p, m] == said[i].finished
    assert pool.finished.any() and not pool.finished.all()


def test_the_nucleus_is_the_configs(speaker, vocabulary, judges, single_precision):
    greedy = make(speaker, vocabulary, judges, config=replace(CONFIG, top_p=1e-9))
    assert [len(texts) for texts in greedy.texts] == [1] * 4


def test_another_seed_gives_another_pool(speaker, vocabulary, judges, pool):
    assert make(speaker, vocabulary, judges).texts == pool.texts
    assert make(speaker, vocabulary, judges, seed=4).texts != pool.texts


def test_answers_are_told_apart_by_their_tokens(pool, speaker, vocabulary):
    """Same number ⇔ same tokens, EOS included; length counts them."""
    starts = [chat.prompt_ids(vocabulary, prompt.messages) for prompt in ASKED]
    ids = []
    for temperature in pool.temperatures:
        ids += generate(
            speaker,
            starts,
            max_new_tokens=6,
            eos_id=vocabulary.eos_id,
            temperature=temperature,
            n=6,
            seeds=3,
        ).lists()
    seen = {}
    for (t, p, m), tokens in zip(each(pool), ids, strict=True):
        number = int(pool.answer[t, p, m])
        assert seen.setdefault((p, number), tokens) == tokens
        assert pool.length[t, p, m] == len(tokens)
    assert len({(p, tuple(x)) for (p, _), x in seen.items()}) == len(seen)
    assert len(seen) == sum(map(len, pool.texts)) < pool.answer.numel()


# Scores


def test_every_sample_has_the_scores_that_it_would_get_alone(
    pool, speaker, vocabulary, judges
):
    models = {**judges, "logprob": own_logprob(speaker)}
    for t, p, m in each(pool)[::5]:
        prompt = ASKED[p]
        ids = vocabulary_ids(pool, vocabulary, speaker, t, p, m)
        start = chat.prompt_ids(vocabulary, prompt.messages)
        for name, model in models.items():
            alone = reward.score(model, [start], [[ids]])[0][0]
            assert getattr(pool, name)[t, p, m].item() == pytest.approx(alone, abs=1e-4)
        verdict = judge(
            VILLAGE, prompt, pool.text(t, p, m), bool(pool.finished[t, p, m])
        )
        gold = pool.gold_helpfulness[t, p, m].item(), pool.gold_safety[t, p, m].item()
        assert gold == pytest.approx((verdict.helpfulness, verdict.safety))


def vocabulary_ids(pool, vocabulary, speaker, t, p, m):
    """The tokens of one sample, drawn again with the seed of its row."""
    return generate(
        speaker,
        [chat.prompt_ids(vocabulary, ASKED[p].messages)],
        max_new_tokens=6,
        eos_id=vocabulary.eos_id,
        temperature=pool.temperatures[t],
        seeds=[3 * 1_000_003 + 6 * p + m],
    ).lists()[0]


def test_logprob_is_the_models_own_whatever_the_temperature(pool, speaker, vocabulary):
    for t, p, m in each(pool)[::7]:
        start = chat.prompt_ids(vocabulary, ASKED[p].messages)
        ids = vocabulary_ids(pool, vocabulary, speaker, t, p, m)
        with torch.no_grad():
            logits = speaker(torch.tensor([start + ids]))[0, len(start) - 1 : -1]
        each_token = logits.log_softmax(-1)[range(len(ids)), ids]
        found = pool.logprob[t, p, m].item()
        assert found == pytest.approx(each_token.mean().item(), abs=1e-4)


def test_equal_answers_are_scored_once(
    speaker, vocabulary, judges, monkeypatch, single_precision
):
    given = []

    def counting(model, starts, answers):
        given.append([list(map(tuple, several)) for several in answers])
        return reward.score(model, starts, answers)

    monkeypatch.setattr(sample_pool_stage, "score", counting)
    made = make(speaker, vocabulary, judges)
    assert len(given) == 4  # three reward models and the model itself
    for several in given:
        for answers, texts in zip(several, made.texts, strict=True):
            assert max(Counter(answers).values()) == 1
            assert len(answers) == len(texts)


def test_the_combined_reward_is_gated(pool):
    limit = torch.logit(torch.tensor(GATE)).item()
    seen = set()
    for t, p, m in each(pool):
        safety, helpful = pool.safety[t, p, m], pool.helpful[t, p, m]
        unsafe, harm = bool(safety < limit), ASKED[p].kind == "harm"
        expected = safety if unsafe or harm else helpful
        assert pool.combined[t, p, m] == expected
        seen.add((unsafe, harm))
    assert len(seen) == 4, "the toy models do not reach every case"


def test_making_a_pool_leaves_the_model_alone(speaker, vocabulary, judges):
    before = {name: w.clone() for name, w in speaker.state_dict().items()}
    speaker.train()
    make(speaker, vocabulary, judges)
    assert speaker.training
    for name, weight in speaker.state_dict().items():
        assert torch.equal(weight, before[name])


# Prompts


@pytest.mark.parametrize("n", [9, 40, 100])
def test_all_judged_kinds_are_asked_and_nothing_twice(n):
    found = asked(VILLAGE, n, seed=0)
    assert len(found) == n
    assert {p.split for p in found} == {"test"}
    kinds = Counter(p.kind for p in found)
    assert set(kinds) == {*evaluate.BENIGN, evaluate.SAFETY}
    assert len({p.turns for p in found}) == n
    assert asked(VILLAGE, n, seed=0) == found != asked(VILLAGE, n, seed=1)
    if n == 9:
        assert set(kinds.values()) == {1}


def test_harm_is_among_the_few():
    assert "harm" in {p.kind for p in asked(VILLAGE, 3, seed=0)}


def test_a_part_of_the_pool_by_kind(pool):
    harm = pool.of("harm")
    assert harm.prompts == (ASKED[1], ASKED[3]) and harm.kinds == ("harm",)
    assert torch.equal(harm.combined, pool.combined[:, [1, 3]])
    assert harm.text(1, 1, 2) == pool.text(1, 3, 2)
    both = pool.of(("sum", "harm"))
    assert both.answer.shape == (2, 3, 6)
    assert pool.of(pool.kinds).texts == pool.texts
    with pytest.raises(ValueError, match="no prompt of rhyme, only of sum, harm"):
        pool.of("rhyme")


def test_a_temperature_that_was_not_sampled_is_refused(pool):
    assert pool.index(0.9) == 1
    with pytest.raises(ValueError, match=r"temperature 0.5, only at 0.1, 0.9"):
        pool.index(0.5)


def test_more_of_the_same_samples_never_lower_the_maximum(pool):
    """The samples are nested: the first N of a prompt are among its first N + 1."""
    for rewards in (pool.combined, pool.plain, pool.gold_helpfulness):
        best = rewards.cummax(-1).values
        assert (best.diff() >= 0).all()
        for t in range(len(pool.temperatures)):
            curve = [expected_best(rewards[t], rewards[t], N) for N in range(1, 7)]
            assert (torch.stack(curve).diff(dim=0) >= -1e-9).all()
            torch.testing.assert_close(curve[-1], rewards[t].amax(-1).double())


# On disk


def test_it_comes_back_as_it_was(pool, tmp_path):
    save(pool, tmp_path / "new" / "folder")
    again = load(tmp_path / "new" / "folder")
    for name, value in vars(pool).items():
        other = getattr(again, name)
        if isinstance(value, torch.Tensor):
            assert other.dtype == value.dtype and torch.equal(other, value)
        else:
            assert other == value
    assert not [p for p in (tmp_path / "new/folder").iterdir() if p.name[0] == "."]


def test_without_a_pool_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no pool"):
        load(tmp_path)


def test_a_crash_while_saving_leaves_no_half_pool(pool, tmp_path, monkeypatch):
    """Neither the new pool, which is not whole, nor the old one's words with it."""
    save(pool.of("sum"), tmp_path)

    def crash(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(sample_pool, "write_json", crash)
    with pytest.raises(OSError, match="disk is full"):
        save(pool, tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path)


def test_damage_is_one_clear_sentence(pool, tmp_path):
    save(pool, tmp_path)
    tensors, words = tmp_path / "pool.safetensors", tmp_path / "pool.json"
    whole, said = tensors.read_bytes(), json.loads(words.read_text())

    def refused(match="is damaged"):
        with pytest.raises(ValueError, match=match) as error:
            load(tmp_path)
        assert "\n" not in str(error.value)

    tensors.write_bytes(whole[: len(whole) // 2])
    refused()
    tensors.write_bytes(whole)
    for broken in (
        {**said, "texts": said["texts"][:-1]},
        {**said, "texts": [[] for _ in said["texts"]]},
        {**said, "temperatures": [1.0]},
        {**said, "prompts": [{"no": "prompt"}] * 4},
        {"texts": said["texts"]},
        [1, 2],
    ):
        words.write_text(json.dumps(broken))
        refused()
    words.write_text("{")
    refused()


# The stage


def test_the_stage_keeps_the_pool_of_any_model(
    tmp_path, speaker, vocabulary, judges, single_precision
):
    upstream = {"other": SimpleNamespace(
        model=lambda: speaker, tokenizer=lambda: vocabulary
    )}  # fmt: skip
    for name, model in judges.items():
        reward.save(model, tmp_path / name / "model")
        upstream[f"rm_{name}"] = SimpleNamespace(path=tmp_path / name)
    smoke = configs.load("smoke")
    config = SimpleNamespace(best_of_n=replace(CONFIG, prompts=10), ppo=smoke.ppo)
    metrics = sample_pool_stage.build(
        config, 3, upstream, tmp_path / "out", model="other"
    )
    made = load(tmp_path / "out")
    assert list(made.prompts) == asked(VILLAGE, 10, 3)
    assert metrics["samples"] == made.answer.numel() == 2 * 10 * 6
    assert metrics["different"] == sum(map(len, made.texts))
    again = sample_pool_stage.sample_pool(
        speaker,
        vocabulary,
        judges,
        VILLAGE,
        made.prompts,
        CONFIG,
        gate=smoke.ppo.safety_gate,
        seed=3,
    )
    for name in (*SCORES, "combined", "gold_helpfulness"):
        torch.testing.assert_close(getattr(again, name), getattr(made, name))


def test_the_stage_names_the_model_among_its_needs():
    stage = stages.STAGES["bon_pool"]
    assert stage.options["model"] in stage.needs
    assert {"rm_helpful", "rm_safety", "rm_plain"} <= set(stage.needs)
    assert {"best_of_n", "ppo.safety_gate"} <= set(stage.sections)
