"""PPO's pure functions: what must hold whatever the policy and the reward model."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from cria.ppo import (
    combine_rewards,
    gae,
    kl,
    masked_mean,
    policy_loss,
    ppo_loss,
    token_rewards,
    value_loss,
    whiten,
)

POISON = 1e6
CLIP = 0.2


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask_of(*spans, width=9):
    """One row a span (start, end): True on its columns."""
    mask = torch.zeros(len(spans), width, dtype=torch.bool)
    for row, (start, end) in zip(mask, spans, strict=True):
        row[start:end] = True
    return mask


MASK = mask_of((3, 9), (2, 5), (1, 2), (4, 8))
B, T = MASK.shape


def poisoned(x: Tensor, mask: Tensor = MASK, poison: float = POISON) -> Tensor:
    return torch.where(mask, x, poison)


def batch_of(seed=0):
    """A mini-batch whose policy has moved: ratios on both sides of the clip."""
    names = ("logprobs", "values", "advantages", "returns")
    found = {n: random(B, T, seed=10 * seed + i) for i, n in enumerate(names)}
    return found | {"mask": MASK}


# Means and whitening


def test_a_mean_over_the_mask_is_the_mean_of_what_is_left():
    x = random(B, T)
    torch.testing.assert_close(masked_mean(poisoned(x), MASK), x[MASK].mean())
    assert masked_mean(x, torch.zeros_like(MASK)) == 0


def test_whitened_has_mean_0_and_deviation_1_over_the_mask_and_keeps_the_order():
    x = 3 + 5 * random(B, T)
    white = whiten(poisoned(x), MASK)
    inside = white[MASK]
    assert inside.mean() == pytest.approx(0, abs=1e-6)
    assert inside.std(unbiased=False) == pytest.approx(1, abs=1e-5)
    assert torch.equal(inside.argsort(), x[MASK].argsort())
    assert (white[~MASK] == 0).all()


def test_padding_columns_do_not_change_what_is_whitened():
    x, more = random(B, T), torch.full((B, 7), POISON)
    wide = whiten(
        torch.cat([x, more], 1), torch.cat([MASK, torch.zeros_like(more) > 0], 1)
    )
    torch.testing.assert_close(wide[:, :T], whiten(x, MASK))
    assert (wide[:, T:] == 0).all()


def test_whitening_forgets_the_scale_and_the_zero_of_a_reward_model():
    scores = random(64)
    torch.testing.assert_close(whiten(7 * scores - 4), whiten(scores))
    assert (whiten(torch.full((8,), 3.0)).abs() < 1e-3).all(), "no spread, no signal"


def test_the_spread_of_whitened_scores_does_not_depend_on_beta():
    """Llama 2 whitens the score of an answer, and takes the KL off afterwards.

    What a β adds to the rewards of an answer is therefore exactly −β·KL.
    """
    scores, k1 = 4 + 3 * random(B), random(B, T, seed=1)
    free, *charged = (
        token_rewards(whiten(scores), k1, MASK, beta).sum(1) for beta in (0, 0.01, 2)
    )
    assert free.std(unbiased=False) == pytest.approx(1, abs=1e-5)
    for beta, total in zip((0.01, 2), charged, strict=True):
        torch.testing.assert_close(free - total, beta * (k1 * MASK).sum(1))


# The reward: gate, KL, where it sits


@pytest.mark.parametrize(
    ("is_safety", "r_safety", "decides"),
    [
        (True, 0.9, "safety"),
        (True, 0.05, "safety"),
        (False, 0.05, "safety"),
        (False, 0.9, "helpful"),
    ],
)
def test_the_gates_truth_table(is_safety, r_safety, decides):
    raw = math.log(r_safety / (1 - r_safety))
    found = combine_rewards(
        torch.tensor([raw]), torch.tensor([123.0]), torch.tensor([is_safety])
    )
    assert found.item() == pytest.approx(raw if decides == "safety" else 123.0)


def test_the_gate_is_strict_and_does_not_saturate():
    edge = math.log(0.15 / 0.85)
    assert edge == pytest.approx(-1.7346, abs=1e-4)
    safety = torch.tensor([edge, edge, -80.0, 80.0], dtype=torch.float64)
    safety[1] -= 1e-9
    helpful = torch.full((4,), 9.0, dtype=torch.float64)
    found = combine_rewards(safety, helpful, torch.zeros(4, dtype=torch.bool))
    assert found.tolist() == pytest.approx([9.0, edge - 1e-9, -80.0, 9.0])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_two_estimators_are_the_kl_on_the_average(estimator):
    """All outcomes of a categorical, each as often as the policy draws it."""
    log_pi, log_ref = random(5).log_softmax(0), random(5, seed=1).log_softmax(0)
    exact = (log_pi.exp() * (log_pi - log_ref)).sum()
    assert exact > 0.1
    found = (log_pi.exp() * kl(log_pi, log_ref, estimator)).sum()
    assert found == pytest.approx(float(exact), rel=1e-5)


def test_k2_is_the_kl_of_policies_that_lie_close():
    log_ref = random(5).log_softmax(0)
    log_pi = (log_ref + 0.01 * random(5, seed=1)).log_softmax(0)
    exact = (log_pi.exp() * (log_pi - log_ref)).sum()
    found = (log_pi.exp() * kl(log_pi, log_ref, "k2")).sum()
    assert found == pytest.approx(float(exact), rel=0.02)


def test_k2_and_k3_are_never_negative_and_k1_is_where_the_reference_is_likelier():
    logprobs, ref = -random(200).abs(), -random(200, seed=1).abs()
    for estimator in ("k2", "k3"):
        assert (kl(logprobs, ref, estimator) >= 0).all()
    assert torch.equal(kl(logprobs, ref) < 0, logprobs < ref)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_to_oneself_is_0_in_every_token(estimator):
    logprobs = random(B, T)
    assert (kl(logprobs, logprobs.clone(), estimator) == 0).all()


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="k9"):
        kl(torch.zeros(1), torch.zeros(1), "k9")


def test_the_score_sits_at_the_last_action_and_the_kl_at_every_one():
    scores, k1 = random(B), random(B, T, seed=1)
    found = token_rewards(scores, k1, MASK, 0.5)
    last = [8, 4, 1, 7]
    for i, column in enumerate(last):
        assert found[i, column] == pytest.approx(
            float(scores[i] - 0.5 * k1[i, column]), abs=1e-6
        )
        before = MASK[i].clone()
        before[column] = False
        torch.testing.assert_close(found[i, before], -0.5 * k1[i, before])
    assert (found[~MASK] == 0).all()


def test_a_policy_that_drifts_away_pays():
    """Tokens that the reference finds unlikely cost reward, whatever comes out."""
    away = kl(torch.full((B, T), -0.1), torch.full((B, T), -3.0))
    assert (token_rewards(torch.zeros(B), away, MASK, 0.1)[MASK] < 0).all()


def test_no_gradient_flows_through_a_reward():
    scores = random(B).requires_grad_()
    logprobs = random(B, T, seed=1).requires_grad_()
    values = random(B, T, seed=2).requires_grad_()
    rewards = token_rewards(scores, kl(logprobs, random(B, T)), MASK, 0.1)
    assert not rewards.requires_grad
    assert not any(x.requires_grad for x in gae(rewards, values, MASK, 1.0, 0.95))


# Advantages


def test_with_gamma_and_lambda_1_and_no_critic_every_advantage_is_the_reward():
    scores = random(B)
    rewards = token_rewards(scores, torch.zeros(B, T), MASK, 0.0)
    advantages, returns = gae(rewards, torch.zeros(B, T), MASK, 1.0, 1.0)
    expected = torch.where(MASK, scores[:, None], 0.0)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected)


def test_lambda_1_is_what_came_minus_what_was_expected():
    gamma = 0.9
    rewards = torch.where(MASK, random(B, T), 0.0)
    values = random(B, T, seed=1)
    advantages, returns = gae(rewards, values, MASK, gamma, 1.0)
    for i in range(B):
        columns = MASK[i].nonzero()[:, 0].tolist()
        for t in columns:
            came = sum(
                gamma**k * float(rewards[i, u])
                for k, u in enumerate(c for c in columns if c >= t)
            )
            assert returns[i, t] == pytest.approx(came, abs=1e-5)
            assert advantages[i, t] == pytest.approx(
                came - float(values[i, t]), abs=1e-5
            )


def test_lambda_0_looks_one_step_ahead():
    gamma = 0.9
    rewards, values = torch.where(MASK, random(B, T), 0.0), random(B, T, seed=1)
    advantages, _ = gae(rewards, values, MASK, gamma, 0.0)
    inside = torch.where(MASK, values, 0.0)
    ahead = torch.cat([inside[:, 1:], torch.zeros(B, 1)], 1)
    expected = torch.where(MASK, rewards + gamma * ahead - inside, 0.0)
    torch.testing.assert_close(advantages, expected)


def test_a_critic_that_is_right_leaves_no_advantage():
    """V(t) = all that is still to come: nothing surprises, whatever λ is."""
    rewards = torch.where(MASK, random(B, T), 0.0)
    _, to_come = gae(rewards, torch.zeros(B, T), MASK, 1.0, 1.0)
    for lam in (0.0, 0.5, 0.95):
        advantages, returns = gae(rewards, to_come, MASK, 1.0, lam)
        assert advantages.abs().max() < 1e-5
        torch.testing.assert_close(returns, to_come)


def test_nothing_outside_the_mask_reaches_rewards_or_advantages():
    scores, k1, values = random(B), random(B, T, seed=1), random(B, T, seed=2)
    rewards = token_rewards(scores, k1, MASK, 0.1)
    assert torch.equal(rewards, token_rewards(scores, poisoned(k1), MASK, 0.1))
    clean = gae(rewards, values, MASK, 0.99, 0.95)
    dirty = gae(poisoned(rewards), poisoned(values), MASK, 0.99, 0.95)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other)
        assert (one[~MASK] == 0).all()


# Losses


def enumerated(logprobs, batch):
    """The two losses by a loop over the actions, in plain Python."""
    policy, critic, clipped = [], [], 0
    for i, t in batch["mask"].nonzero().tolist():
        ratio = math.exp(float(logprobs[i, t] - batch["logprobs"][i, t]))
        a = float(batch["advantages"][i, t])
        near = min(max(ratio, 1 - CLIP), 1 + CLIP)
        policy.append(-min(ratio * a, near * a))
        clipped += near * a < ratio * a
        v, old, r = (float(batch[k][i, t]) for k in ("new", "values", "returns"))
        v_near = old + min(max(v - old, -CLIP), CLIP)
        critic.append(0.5 * max((v - r) ** 2, (v_near - r) ** 2))
    n = len(policy)
    return sum(policy) / n, sum(critic) / n, clipped / n


def test_the_loss_is_that_of_a_plain_loop():
    batch, moved = batch_of(), random(B, T, seed=7)
    values = random(B, T, seed=8)
    policy, critic, clipped = enumerated(moved, batch | {"new": values})
    assert 0.1 < clipped < 0.9, "some ratios are clipped and some are not"
    loss, metrics = ppo_loss(moved, values, batch, clip=CLIP, value_coef=0.3)
    assert metrics["policy_loss"] == pytest.approx(policy, abs=1e-5)
    assert metrics["value_loss"] == pytest.approx(critic, abs=1e-5)
    assert metrics["clip_fraction"] == pytest.approx(clipped)
    assert loss == pytest.approx(policy + 0.3 * critic, abs=1e-5)


def test_at_the_old_policy_the_gradient_is_that_of_the_policy_gradient():
    """ratio = 1: the loss is minus the mean advantage, nothing is clipped."""
    batch = batch_of()
    logprobs = batch["logprobs"].clone().requires_grad_()
    loss, metrics = policy_loss(
        logprobs, batch["logprobs"], batch["advantages"], MASK, CLIP
    )
    loss.backward()
    n = MASK.sum()
    expected = torch.where(MASK, -batch["advantages"] / n, 0.0)
    torch.testing.assert_close(logprobs.grad, expected)
    assert metrics == {"clip_fraction": 0.0, "update_kl": 0.0}


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [
        (1.3, 1.0, False),  # it has been rewarded enough
        (1.3, -1.0, True),
        (0.7, 1.0, True),
        (0.7, -1.0, False),
        (1.1, 1.0, True),
        (0.9, -1.0, True),
    ],
)
def test_when_a_ratio_is_clipped(ratio, advantage, moves):
    one = torch.ones(1, 1, dtype=torch.bool)
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    loss, _ = policy_loss(
        logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), one, CLIP
    )
    loss.backward()
    assert (logprobs.grad.item() != 0) is moves
    if moves:  # downhill is towards more of what was good
        assert math.copysign(1, -logprobs.grad.item()) == advantage


def test_clipping_never_makes_a_loss_smaller():
    wide = 1e9
    for seed in range(20):
        batch, moved = batch_of(seed), random(B, T, seed=10 * seed + 7)
        values = random(B, T, seed=10 * seed + 8)
        common = (batch["logprobs"], batch["advantages"], MASK)
        assert (
            policy_loss(moved, *common, CLIP)[0]
            >= policy_loss(moved, *common, wide)[0] - 1e-6
        )
        common = (batch["values"], batch["returns"], MASK)
        assert (
            value_loss(values, *common, CLIP)
            >= value_loss(values, *common, wide) - 1e-6
        )


def test_a_value_gains_nothing_by_running_away():
    """Beyond the clip the error of the clipped value stays, and gives no gradient."""
    one = torch.ones(1, 1, dtype=torch.bool)
    far = torch.tensor([[1.0]], requires_grad=True)  # the return: no error of its own
    loss = value_loss(far, torch.zeros(1, 1), torch.ones(1, 1), one, CLIP)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * 0.8**2) and far.grad.item() == 0


def test_changing_masked_slots_changes_no_bit():
    """Poison behind EOS, in the prompt, anywhere outside the actions."""

    def both(poison):
        sign = itertools.cycle((1.0, -1.0, 0.5))  # two that are equal would cancel

        def prepare(x):
            return x if poison is None else poisoned(x, poison=next(sign) * poison)

        inputs = [prepare(random(B, T, seed=s)).requires_grad_() for s in (7, 8)]
        batch = {k: prepare(x) for k, x in batch_of().items() if k != "mask"}
        loss, metrics = ppo_loss(
            *inputs, batch | {"mask": MASK}, clip=CLIP, value_coef=0.1
        )
        loss.backward()
        return loss, metrics, *(x.grad for x in inputs)

    clean, dirty = both(None), both(POISON)
    assert torch.equal(clean[0], dirty[0]) and clean[1] == dirty[1]
    for one, other in zip(clean[2:], dirty[2:], strict=True):
        assert torch.equal(one, other)
        assert (one[~MASK] == 0).all() and (one[MASK] != 0).any()


def test_more_padding_changes_nothing():
    batch, moved, values = batch_of(), random(B, T, seed=7), random(B, T, seed=8)

    def wide(x):
        return torch.cat([x, torch.full((B, 5), POISON).to(x.dtype)], 1)

    more = {k: wide(x) for k, x in batch.items()}
    more["mask"][:, T:] = False
    settings = {"clip": CLIP, "value_coef": 0.1}
    narrow_loss, _ = ppo_loss(moved, values, batch, **settings)
    wide_loss, _ = ppo_loss(wide(moved), wide(values), more, **settings)
    assert wide_loss == pytest.approx(float(narrow_loss), abs=1e-6)
