"""Training reward models: a preference is learnt, and killed is as never stopped."""

import functools
from dataclasses import replace

import pytest
import torch

from cria import config, reward, reward_training, stages
from cria.branching import branched
from cria.config import ModelConfig, OptimConfig
from cria.model import Llama
from cria.preferences import load
from cria.reward import RewardModel, ranking_loss, safety_loss, score
from cria.reward_data import Pairs, batches, comparisons
from cria.reward_training import center, reward_loss, train_reward_model
from cria.training import train

SMOKE = config.load("smoke")
SHAPE = ModelConfig(16, 1, 2, 1, vocab_size=30, multiple_of=8, max_seq_len=64)
TOY = replace(
    SMOKE.reward,
    batch_size=8,
    epochs=1,
    optim=OptimConfig(lr=1e-2, warmup_steps=2),
    dtype="float32",
)
EOS, YES, NO = 2, 4, 5


def toy_pairs(n, seed=0, flipped=False):
    """ "Yes" beats "no", wherever it stands among other words."""
    generator = torch.Generator().manual_seed(seed)

    def words(low):
        length = int(torch.randint(low, 6, (), generator=generator))
        return torch.randint(6, 30, (length,), generator=generator).tolist()

    rows = []
    for _ in range(n):
        yes, no = ([*words(0), said, *words(0), EOS] for said in (YES, NO))
        rows.append(([1, *words(1)], (no, yes) if flipped else (yes, no)))
    label = torch.tensor([[0, 1] if flipped else [1, 0]]).expand(n, 2)
    return Pairs(rows, torch.zeros(n), label)


def accuracy(model, pairs):
    found = score(model, [p for p, _ in pairs.rows], [both for _, both in pairs.rows])
    return sum(chosen > rejected for chosen, rejected in found) / len(found)


def trained(pairs, changes=TOY, trunk=None, seed=0, **options):
    trunk = trunk or Llama(SHAPE, seed=1)
    return train_reward_model(
        trunk, pairs, changes, seed=seed, progress=False, **options
    )


def weights(model):
    return {name: w.clone() for name, w in model.state_dict().items()}


def same_bits(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def timeless(rows):
    times = ("seconds", "tokens_per_s")  # no two runs agree on these
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


# A preference is learnt


@pytest.mark.parametrize("own_logprob", [False, True], ids=["plain", "own_logprob"])
def test_yes_beats_no_on_pairs_never_seen(own_logprob):
    held_out = toy_pairs(100, seed=9)
    model, metrics = trained(toy_pairs(480), own_logprob=own_logprob)
    assert accuracy(model, held_out) == 1.0
    assert not model.training
    assert metrics[-1]["ranking_loss"] < 0.1 < metrics[0]["ranking_loss"]
    assert metrics[-1]["accuracy"] == 1.0 and metrics[-1]["gap"] > 1


def test_with_the_labels_flipped_no_beats_yes():
    model, _ = trained(toy_pairs(480, flipped=True))
    assert accuracy(model, toy_pairs(100, seed=9)) == 0.0


def test_a_margin_asks_for_more():
    """The same first batch, before anything is learnt: its loss is larger by it."""
    losses = []
    for m in (0.0, 3.0):
        pairs = replace(toy_pairs(96), margin=torch.full((96,), m))
        losses.append(trained(pairs, steps=1)[1][0]["ranking_loss"])
    assert losses[0] + 1 < losses[1] < losses[0] + 3


def test_the_safety_loss_gives_the_score_a_zero_point():
    """With it yes is above zero and no below; the ranking alone does not ask for it."""
    held_out = toy_pairs(100, seed=9)
    model, _ = trained(toy_pairs(480), aux=1.0)
    given = torch.tensor(
        score(model, [p for p, _ in held_out.rows], [b for _, b in held_out.rows])
    )
    assert (given[:, 0] > 0).all() and (given[:, 1] < 0).all()


def test_epochs_and_steps():
    pairs = toy_pairs(50)
    for changes, steps, expected in (
        (TOY, None, 6),
        (replace(TOY, epochs=3), None, 18),
        (TOY, 4, 4),
    ):
        _, metrics = trained(pairs, changes, steps=steps)
        assert metrics[-1]["step"] == expected


def test_the_seed_decides_all():
    made = [weights(trained(toy_pairs(80), seed=seed)[0]) for seed in (0, 0, 1)]
    assert same_bits(made[0], made[1]) and not same_bits(made[0], made[2])


# The loss of a batch


def test_the_loss_is_the_sum_of_its_parts():
    pairs = replace(toy_pairs(8), margin=torch.linspace(0, 1, 8))
    batch = batches(pairs, 8, seed=0)(0)
    model = RewardModel(Llama(SHAPE, seed=1), own_logprob=True)
    with torch.no_grad():
        scores, logprobs = model.with_logprobs(batch["ids"], batch["branches"])
        ranking, _ = ranking_loss(scores[:, 0], scores[:, 1], batch["margin"])
        parts = {
            "ranking": ranking.item(),
            "safety": safety_loss(scores, batch["safe"]).item(),
            "chosen": -logprobs[:, 0].mean().item(),
        }
        assert len({round(part, 3) for part in parts.values()}) == 3
        for aux, lm in ((0, 0), (0.7, 0), (0, 0.3), (0.7, 0.3)):
            loss, metrics = reward_loss(aux, lm)(model, batch)
            expected = parts["ranking"] + aux * parts["safety"] + lm * parts["chosen"]
            assert loss.item() == pytest.approx(expected, rel=1e-5)
            assert metrics["ranking_loss"] == pytest.approx(parts["ranking"])


def test_the_models_that_weigh_their_logprob_go_on_foretelling_answers():
    """`lm_loss` is theirs alone; with it the chosen answers become likelier."""
    pairs = toy_pairs(240)

    def foretold(model):
        made = branched(pairs.rows)
        with torch.no_grad():
            found = model.with_logprobs(made.ids, made.branches, wanted=True)[1]
        return found[:, 0].mean().item()

    fresh = foretold(RewardModel(Llama(SHAPE, seed=1)))
    with_loss, without = (
        foretold(trained(pairs, replace(TOY, lm_loss=w), own_logprob=True)[0])
        for w in (1.0, 0.0)
    )
    assert with_loss > max(fresh, without) + 0.2
    plain = [weights(trained(pairs, replace(TOY, lm_loss=w))[0]) for w in (1.0, 0.0)]
    assert same_bits(*plain)


# Killed


@pytest.mark.parametrize("at", [2, 7, 11], ids=["before the first save", "7", "11"])
def test_killed_and_resumed_is_never_stopped(tmp_path, monkeypatch, at):
    pairs = toy_pairs(96)
    often = functools.partial(train, checkpoint_every=3)
    monkeypatch.setattr(reward_training, "train", often)
    settings = {"own_logprob": True, "aux": 0.1}
    whole, whole_metrics = trained(pairs, out=tmp_path / "whole", **settings)

    def power_cut(*args):
        draw = batches(*args)

        def cut(step):
            if step == at:
                raise RuntimeError("power cut")
            return draw(step)

        return cut

    with monkeypatch.context() as patch:
        patch.setattr(reward_training, "batches", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            trained(pairs, out=tmp_path / "cut", **settings)
    assert (tmp_path / "cut" / "training.safetensors").exists() is (at > 3)
    resumed, metrics = trained(pairs, out=tmp_path / "cut", **settings)
    assert same_bits(weights(resumed), weights(whole))
    assert timeless(metrics) == timeless(whole_metrics)


# The zero of the scores


def test_centred_scores_have_mean_zero_and_the_same_ranking():
    pairs = toy_pairs(60)
    model, _ = trained(pairs)
    with torch.no_grad():
        model.head.bias += 5.0
    asked, said = [p for p, _ in pairs.rows], [both for _, both in pairs.rows]
    before = torch.tensor(score(model, asked, said, dtype="float32"))
    shift = center(model, pairs)
    after = torch.tensor(score(model, asked, said, dtype="float32"))
    assert abs(before.mean()) > 1 and abs(after.mean()) < 0.05  # scored in bfloat16
    torch.testing.assert_close(after, before + shift)
    assert torch.equal(after.flatten().argsort(), before.flatten().argsort())
    assert abs(center(model, pairs)) < 0.05, "once is enough"


# The stages


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both reward models of the smoke profile, from an empty cache."""
    cache = tmp_path_factory.mktemp("cache")
    return {
        name: stages.get(name, SMOKE, cache=cache, say=lambda line: None)
        for name in ("sft_a", "preferences", "rm_helpful", "rm_safety")
    }


def test_the_stages_hold_reward_models(made):
    """The helpfulness RM weighs its own log-probability, the safety RM is plain."""
    for name, ground in (("rm_helpful", "helpfulness"), ("rm_safety", "safety")):
        model = reward.load(made[name].path)
        own = ground in SMOKE.reward.own_logprob
        assert (model.logprob_weight is not None) is own
        start = made["sft_a"].model()
        assert model.trunk.config == start.config
        moved = model.trunk.tok_embeddings.weight - start.tok_embeddings.weight
        assert 0 < moved.abs().max() < 0.1, "trained, from the chat model"
        assert made[name].tokenizer().vocab_size == start.config.vocab_size
        assert not list(made[name].path.rglob("training.safetensors"))
        assert {"pairs", "sources", "loss", "accuracy"} <= set(made[name].metrics)


def test_the_stages_read_the_papers_mixes(made):
    data = comparisons(made["preferences"].path)
    own = {ground: len(data["train"][ground]) for ground in ("helpfulness", "safety")}
    helpful, safe = (made[n].metrics["sources"] for n in ("rm_helpful", "rm_safety"))
    assert helpful["own helpfulness"] == own["helpfulness"]
    others = sum(helpful.values()) - own["helpfulness"]
    available = own["safety"] + sum(map(len, data["open"].values()))
    assert others == min(available, own["helpfulness"])  # one half, if there are

    ours = safe["own safety"] + safe.get("open safety", 0)
    assert ours == own["safety"] + len(data["open"]["safety"])
    assert safe["own helpfulness"] == round(ours / 9)  # one tenth of the whole
    for name, found in (("rm_helpful", helpful), ("rm_safety", safe)):
        assert made[name].metrics["pairs"] == sum(found.values())


def test_the_helpfulness_scores_are_centred(made):
    model = reward.load(made["rm_helpful"].path)
    given, vocabulary = [], made["rm_helpful"].tokenizer()
    for part in comparisons(made["preferences"].path)["train"].values():
        pairs = reward_training.encode(vocabulary, part)
        given += score(
            model, [p for p, _ in pairs.rows], [both for _, both in pairs.rows]
        )
    mean = torch.tensor(given).mean()
    assert abs(mean) < 0.05, "nearly zero: the few open ones are left out here"
    assert model.head.bias > 1, "it makes up for log-probabilities far below zero"


def test_no_test_prompt_was_trained_on(made):
    folder = made["preferences"].path
    test, *rest = (
        {c.turns for c in load(folder / f"{part}.jsonl").comparisons}
        for part in ("test", "train", "open")
    )
    assert test and not test & set.union(*rest)


def test_the_switches_reach_the_stage(made, tmp_path):
    """The margins and the auxiliary loss change what is learnt; the latter of safety
    alone."""

    def built(ground, name, **changes):
        out = tmp_path / f"{ground} {name}"
        out.mkdir()
        profile = replace(SMOKE, reward=replace(SMOKE.reward, **changes))
        reward_training.build(profile, 0, made, out, ground)
        return weights(reward.load(out))

    for ground, stage in (("helpfulness", "rm_helpful"), ("safety", "rm_safety")):
        as_made = weights(reward.load(made[stage].path))
        assert same_bits(built(ground, "as it is"), as_made)
        assert not same_bits(built(ground, "margin", margin="large"), as_made)
        no_aux = built(ground, "no aux", safety_aux=0.0)
        assert same_bits(no_aux, as_made) is (ground == "helpfulness")


@pytest.mark.parametrize("moment", ["center", "save"])
def test_a_stage_killed_after_training_ends_as_it_would_have(
    made, tmp_path, monkeypatch, moment
):
    """Killed while it centres the scores or saves: built again, it is the same."""
    arguments = (SMOKE, 0, made, tmp_path, "helpfulness")
    with monkeypatch.context() as patch:

        def killed(*args):
            raise RuntimeError("power cut")

        patch.setattr(reward_training, moment, killed)
        with pytest.raises(RuntimeError, match="power cut"):
            reward_training.build(*arguments)
    metrics = reward_training.build(*arguments)
    assert metrics["loss"] == made["rm_helpful"].metrics["loss"]
    again, first = (reward.load(p) for p in (tmp_path, made["rm_helpful"].path))
    assert same_bits(weights(again), weights(first))
