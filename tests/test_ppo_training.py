"""PPO from end to end on a toy: it finds the optimum, stops in time, and goes on."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from ppo_toys import (
    DEV,
    FIRST_WORD,
    PROMPTS,
    SHAPE,
    TOY,
    WORDS,
    Vocabulary,
    ask,
    is_right,
    number_of,
    question,
    right,
)

from cria import chat
from cria.actor_critic import ActorCritic
from cria.config import OptimConfig
from cria.model import Llama
from cria.ppo_rollout import experience, sampled
from cria.ppo_training import (
    best_look,
    look,
    optimizer_of,
    ppo_step,
    set_lr,
    stop,
    train_ppo,
)
from cria.training import TrainingError
from cria.world.prompts import Prompt

BANDIT = replace(
    TOY,
    batch_size=64,
    minibatch_size=32,
    epochs=2,
    iterations=60,
    optim=OptimConfig(lr=5e-3, schedule="constant", weight_decay=0.0),
    gain_lr=5e-3,
    beta=0.0,
    no_eos_penalty=0.0,
    max_new_tokens=1,
    dev_every=20,
)


def run(config=TOY, score=is_right, model=None, **options):
    policy = model or Llama(SHAPE, seed=0)
    settings = {"seed": 3, "progress": False} | options
    rows = train_ppo(
        policy, score, Vocabulary(), ask(config.batch_size), DEV, config, **settings
    )
    return policy, rows


def last(config=TOY, score=is_right, model=None, **options):
    """The policy after the last iteration, whatever look was the best; and the rows."""
    kept = {}

    def watch(policy):
        kept["policy"] = copy.deepcopy(policy)
        return {}

    rows = run(config, score, model, watch=watch, **options)[1]
    return kept["policy"], rows


def first_token(policy, prompt) -> torch.Tensor:
    """log π of the first token of an answer: (V,)."""
    ids = torch.tensor([chat.prompt_ids(Vocabulary(), prompt.messages)])
    with torch.inference_mode():
        return policy(ids)[0, -1].log_softmax(-1)


def same_bits(one, two):
    one, two = one.state_dict(), two.state_dict()
    return all(torch.equal(one[k], two[k]) for k in one)


def texts(step):
    """Rows of text to read beside: they repeat a word."""
    ids = torch.full((2, 8), 5 + step % 3)
    zeros = torch.zeros_like(ids)
    return {"ids": ids, "doc_ids": zeros, "loss_mask": zeros == 0}


# It learns


def test_a_bandit_is_solved():
    """The right word is known for every prompt, and PPO finds it."""
    policy, rows = run(BANDIT)
    for number in range(PROMPTS):
        prompt = question(number)
        assert first_token(policy, prompt)[right(prompt)].exp() > 0.9
    assert rows[-1]["score"] > 0.9 > 0.5 > rows[1]["score"]


def test_a_punished_word_is_given_up():
    """The reward's sign: the same bandit upside down."""
    policy, _ = run(
        replace(BANDIT, iterations=20),
        score=lambda asked, answers: [-x for x in is_right(asked, answers)],
    )
    before = Llama(SHAPE, seed=0)
    for number in range(PROMPTS):
        prompt = question(number)
        now, then = (first_token(m, prompt)[right(prompt)] for m in (policy, before))
        assert now < then - 1


def optimum(log_ref, reward, beta):
    """arg max E[R~] − β·KL where R~ is whitened over the policy's own answers.

    For a fixed R~ it is π_0·exp(R~/β); the two are solved together.
    """
    log_pi = log_ref
    for _ in range(500):
        pi = log_pi.exp()
        mean = (pi * reward).sum()
        spread = (pi * (reward - mean).square()).sum().sqrt()
        new = (log_ref + (reward - mean) / spread / beta).log_softmax(-1)
        log_pi = (0.9 * log_pi + 0.1 * new).log_softmax(-1)
    return log_pi.exp()


def test_with_a_kl_penalty_it_ends_at_the_known_optimum():
    """Not the best word always: as much of each as its reward is worth in KL."""
    reward = torch.zeros(SHAPE.vocab_size)
    reward[FIRST_WORD : FIRST_WORD + WORDS] = torch.arange(1.0, WORDS + 1)
    config = replace(
        BANDIT,
        batch_size=256,
        minibatch_size=256,
        epochs=1,
        iterations=120,
        beta=1.0,
        optim=OptimConfig(lr=4e-3, weight_decay=0.0),
        dev_every=120,
    )
    start = Llama(SHAPE, seed=0)
    end, _ = last(
        config,
        lambda _, answers: [float(reward[a[0]]) for a in answers],
        copy.deepcopy(start),
    )
    expected = optimum(first_token(start, question(0)), reward, 1.0)
    greedy = torch.zeros_like(expected)
    greedy[FIRST_WORD + WORDS - 1] = 1.0

    def gap(one, other):
        return float((one - other).abs().sum()) / 2

    for number in range(PROMPTS):
        found = first_token(end, question(number)).exp()
        assert gap(found, expected) < 0.12
        assert gap(found, greedy) > 0.4, "as if there were no penalty"
        assert gap(found, first_token(start, question(number)).exp()) > 0.2


def test_the_critic_learns_what_to_expect():
    """Prompts of unlike worth: the value head tells them apart."""

    def score(asked, answers):
        return [float(number_of(p)) for p in asked]

    actor = ActorCritic(Llama(SHAPE, seed=0))
    config = replace(BANDIT, value_coef=1.0, value_lr=3e-2, clip=0.5)
    optimizer = optimizer_of(actor, config)
    reference, errors = copy.deepcopy(actor.policy), []
    for i in range(60):
        known = experience(
            actor, reference, score, Vocabulary(), ask(64)(i), config, seed=i
        )
        errors.append(ppo_step(actor, optimizer, known.batch, config)["value_loss"])
    assert errors[-1] < 0.2 * errors[0]


def test_texts_are_read_beside():
    """With a weight they become likelier; without one they are not even looked at."""
    read, rows = last(replace(TOY, text_coef=1.0), texts=texts)
    assert rows[-1]["text_loss"] < rows[1]["text_loss"]
    alone = last(TOY)[0]
    assert same_bits(alone, last(replace(TOY, text_coef=0.0), texts=texts)[0])
    assert not same_bits(alone, read)


def test_every_gradient_step_reads_the_next_texts():
    """Also across iterations: none is read twice, none is left out."""
    asked = []
    config = replace(TOY, text_coef=1.0)
    run(config, texts=lambda k: asked.append(k) or texts(k))
    steps = config.iterations * config.epochs * 2  # mini-batches a batch
    assert sorted(asked) == list(range(steps))


def test_the_last_gains_and_the_value_head_have_rates_of_their_own():
    """Half of the way to the peak, the gains are half of the way to theirs."""
    actor = ActorCritic(Llama(SHAPE, seed=0))
    config = replace(TOY, value_lr=0.5, gain_lr=50 * TOY.optim.lr)
    optimizer = optimizer_of(actor, config)
    set_lr(optimizer, TOY.optim.lr / 2)
    rates = {id(p): TOY.optim.lr / 2 for p in actor.parameters()}
    rates[id(actor.policy.norm.weight)] = pytest.approx(25 * TOY.optim.lr)
    rates |= {id(p): 0.5 for p in actor.value.parameters()}
    seen = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(seen) == len(set(seen)) and set(seen) == set(rates)
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert group["lr"] == rates[id(p)]
            assert p.ndim > 1 or group["weight_decay"] == 0


def test_fast_gains_make_the_policy_surer_where_nobody_practised():
    """Of prompts that training never asks, it knew the word before: unsurely."""
    start = Llama(SHAPE, seed=0)
    taught = replace(BANDIT, iterations=12, dev_every=12)
    run(taught, model=start)
    few = [question(0), question(1)]  # … then only two prompts are asked again

    def entropy(gain_lr):
        policy = copy.deepcopy(start)
        train_ppo(
            policy, is_right, Vocabulary(), lambda i: few * 32, DEV,
            replace(taught, gain_lr=gain_lr, iterations=4, dev_every=4,
                    optim=replace(BANDIT.optim, lr=1e-4)),
            seed=3, progress=False,
        )  # fmt: skip
        logp = first_token(policy, question(3))
        return float(-(logp.exp() * logp).sum())

    assert entropy(5e-2) < 0.9 * entropy(1e-4)


def test_a_step_with_no_finite_gradient_leaves_the_weights():
    actor = ActorCritic(Llama(SHAPE, seed=0))
    optimizer = optimizer_of(actor, TOY)
    known = experience(
        actor, copy.deepcopy(actor.policy), is_right, Vocabulary(), ask(8)(0), TOY, 0
    )
    before = copy.deepcopy(actor)
    part = known.batch | {"advantages": known.batch["advantages"] * torch.nan}
    with pytest.raises(TrainingError, match="lower learning rate"):
        ppo_step(actor, optimizer, part, TOY)
    assert same_bits(actor, before)
    assert all(p.grad is None for p in actor.parameters())


# Looking, and stopping in time


def looks(*seen, every=5):
    """Rows of a run with a look (score, kl) every few iterations."""
    rows = [{"iteration": i} for i in range((len(seen) - 1) * every + 1)]
    for i, (score, kl) in enumerate(seen):
        rows[i * every] |= {"dev_score": score, "dev_kl": kl}
    return rows


@pytest.mark.parametrize(
    ("seen", "best"),
    [
        ([(0, 0), (1, 2), (3, 5), (2, 6)], 10),
        ([(0, 0), (1, 2), (3, 9), (9, 99)], 5),  # beyond the budget of 8
        ([(0, 99), (-1, 2)], 0),  # the start is within any budget
        ([(0, 0), (1, 8), (1, 3)], 5),  # of equals the first; 8 is still within
    ],
)
def test_the_best_look_is_the_highest_within_the_budget(seen, best):
    assert best_look(looks(*seen), kl_budget=8.0) == best


def test_it_stops_after_as_many_looks_without_a_gain_as_its_patience():
    config = replace(TOY, patience=2, kl_budget=8.0, iterations=1000)
    rising = [(0, 0), (1, 1), (2, 2)]
    assert not stop(looks(*rising), config)
    assert not stop(looks(*rising, (1, 2)), config)
    assert stop(looks(*rising, (1, 2), (1.9, 2)), config)
    assert stop(looks(*rising, (5, 9), (6, 10)), config), "gains beyond the budget"
    assert stop(looks(*rising), replace(config, iterations=10)), "all is done"
    assert not stop(looks(*rising), replace(config, iterations=11))


def test_the_policy_that_is_left_is_that_of_the_best_look():
    """A reward model that changes its mind: what it liked in the middle is kept."""
    kept, asked = {}, []

    def score(prompts, answers):
        if prompts[0].split == "train":
            return is_right(prompts, answers)
        asked.append(1)
        return [{3: 9.0}.get(len(asked), 0.0)] * len(prompts)  # the third look

    def watch(policy):
        kept[len(asked)] = copy.deepcopy(policy)
        return {}

    config = replace(TOY, iterations=8)
    policy, rows = run(config, score, watch=watch)
    assert best_look(rows, config.kl_budget) == 4 and len(kept) == 5
    assert same_bits(policy, kept[3]) and not same_bits(kept[3], kept[5])
    assert not policy.training


def test_looks_see_the_running_mean_of_the_policies_and_it_is_what_is_left():
    def looked_at(average):
        seen = []
        config = replace(TOY, average=average, dev_every=1)
        policy, rows = run(config, watch=lambda m: seen.append(copy.deepcopy(m)) or {})
        assert same_bits(policy, seen[best_look(rows, config.kl_budget)])
        return [net.output.weight.detach() for net in seen]

    policies, means = looked_at(0.0), looked_at(0.75)
    expected = policies[0]
    for policy, mean in zip(policies, means, strict=True):
        expected = 0.75 * expected + 0.25 * policy
        torch.testing.assert_close(mean, expected)
    assert not torch.equal(means[-1], policies[-1])


def test_the_mean_earns_as_much_closer_to_the_start():
    """Of a bandit pushed hard: nearly all of the reward, at less KL."""
    hard = replace(BANDIT, iterations=40, dev_every=40)
    _, last = run(hard)
    _, mean = run(replace(hard, average=0.9))
    assert mean[-1]["dev_score"] > 0.9 * last[-1]["dev_score"] > 0
    assert mean[-1]["dev_kl"] < last[-1]["dev_kl"]


def test_a_policy_beyond_the_budget_is_not_kept():
    policy, rows = run(replace(BANDIT, iterations=20, kl_budget=1e-9, dev_every=5))
    assert rows[-1]["dev_score"] > rows[0]["dev_score"] and rows[-1]["dev_kl"] > 1e-6
    assert same_bits(policy, Llama(SHAPE, seed=0))


def test_what_is_watched_decides_nothing():
    """The judge may say what it likes: the same weights, the same step."""
    config = replace(TOY, iterations=8, patience=1)
    found = [
        run(config, watch=lambda policy, judge=judge: {"gold": next(judge)})
        for judge in (iter(range(99)), iter(range(0, -99, -1)))
    ]
    (one, rows), (other, others) = found
    assert same_bits(one, other)
    assert best_look(rows, 1e9) == best_look(others, 1e9)
    assert [r for r in rows if "gold" in r][-1]["gold"] > 0


def test_training_never_sees_the_dev_prompts_and_looks_never_the_training_ones():
    seen = {"train": 0, "dev": 0}

    def score(prompts, answers):
        [split] = {p.split for p in prompts}
        seen[split] += 1
        return is_right(prompts, answers)

    run(TOY, score)
    assert seen == {"train": 4, "dev": 3}


def test_looks_are_made_in_time_and_at_the_end():
    _, rows = run(replace(TOY, iterations=5, dev_every=2))
    assert [r["iteration"] for r in rows] == list(range(6))
    assert [r["iteration"] for r in rows if "dev_score" in r] == [0, 2, 4, 5]
    assert rows[0]["dev_kl"] == 0.0
    for row in rows[1:]:
        assert {"score", "kl", "length", "entropy", "clip_fraction"} <= set(row)


def test_a_look_tells_the_kl_and_the_length_of_an_answer():
    """In nats an answer, EOS included: the sum over its tokens, not their mean."""
    policy, start = Llama(SHAPE, seed=1), Llama(SHAPE, seed=0)
    told = look(policy, start, is_right, Vocabulary(), DEV, TOY, seed=3)
    prompts, answers, _ = sampled(policy, Vocabulary(), DEV, TOY, 3)
    k3 = 0.0
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            pi, pi_0 = (
                m(torch.tensor([prompt + answer]))[0].log_softmax(-1)
                for m in (policy, start)
            )
        for t, token in enumerate(answer, len(prompt) - 1):
            log_r = float(pi_0[t, token] - pi[t, token])
            k3 += math.exp(log_r) - 1 - log_r
    assert told["dev_kl"] == pytest.approx(k3 / len(DEV), rel=1e-3)
    length = sum(map(len, answers)) / len(DEV)
    assert told["dev_length"] == pytest.approx(length) and length > 2


def test_two_looks_at_one_policy_are_the_same_look():
    policy, start = Llama(SHAPE, seed=1), Llama(SHAPE, seed=0)
    one, two = (
        look(policy, start, is_right, Vocabulary(), DEV, TOY, seed=3) for _ in range(2)
    )
    assert one == two and one["dev_kl"] > 0


# Killed is as never stopped


class Killed(BaseException):
    """Ctrl-C, at a place of our choice."""


def dense(prompts, answers):
    """A reward that is easily raised, so that later looks are better."""
    return [float(sum(a)) / len(a) for a in answers]


def dying(after: int):
    """The reward model, which is asked once an iteration and once a look."""
    calls = []

    def score(prompts, answers):
        calls.append(1)
        if len(calls) > after:
            raise Killed
        return dense(prompts, answers)

    return score


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5, 6])
def test_killed_and_resumed_is_as_never_stopped(tmp_path, after):
    own = {"average": 0.5, "gain_lr": 10 * TOY.optim.lr}
    config = replace(TOY, text_coef=0.5, beta=0.05, **own)
    whole, rows = run(config, dense, texts=texts, out=tmp_path / "whole")
    assert best_look(rows, config.kl_budget) == 4 and not same_bits(
        whole, Llama(SHAPE, seed=0)
    )
    with pytest.raises(Killed):
        run(config, dying(after), texts=texts, out=tmp_path / "cut")
    again, resumed = run(config, dense, texts=texts, out=tmp_path / "cut")
    assert same_bits(whole, again) and resumed == rows
    one, other = ((tmp_path / d / "metrics.csv").read_text() for d in ("whole", "cut"))
    assert one == other


def test_a_finished_run_is_not_run_again(tmp_path):
    whole, rows = run(out=tmp_path, score=dense)
    assert best_look(rows, TOY.kl_budget) > 0
    again, others = run(out=tmp_path, score=dying(0))
    assert same_bits(whole, again) and rows == others


def test_another_runs_checkpoint_is_refused(tmp_path):
    run(out=tmp_path)
    with pytest.raises(TrainingError, match="another run"):
        run(replace(TOY, beta=0.5), out=tmp_path)
    with pytest.raises(TrainingError, match="another run"):
        run(out=tmp_path, seed=4)


def test_the_seed_decides_all():
    one = last()[0]
    assert same_bits(one, last()[0])
    assert not same_bits(one, last(seed=4)[0])


def test_prompts_are_dialogues_like_all_others():
    """The toy's prompts are the real thing, so that the real thing is tested."""
    assert isinstance(question(0), Prompt)
    assert chat.prompt_ids(Vocabulary(), question(2).messages) == [1, 5, 5, 5]
