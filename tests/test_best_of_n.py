"""The best of N: order statistics against every single draw."""

import math
from collections import Counter
from itertools import combinations, pairwise, product
from statistics import median

import pytest
import torch

from cria.best_of_n import (
    best_temperature,
    best_weights,
    expected_best,
    expected_median,
    kl_bound,
    kl_of_best,
    order_weights,
)


def by_enumeration(rewards, values, N):
    """Every draw of N samples; where several share the highest reward, their mean."""
    result = []
    for r, v in zip(rewards.tolist(), values.tolist(), strict=True):
        won = []
        for draw in combinations(range(len(r)), N):
            best = max(r[i] for i in draw)
            tied = [v[i] for i in draw if r[i] == best]
            won.append(sum(tied) / len(tied))
        result.append(sum(won) / len(won))
    return torch.tensor(result, dtype=torch.float64)


def samples(prompts, M, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, prompts, M, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("M", [1, 2, 5, 7])
def test_it_is_the_mean_over_all_draws(M):
    rewards, values = samples(4, M)
    for N in range(1, M + 1):
        torch.testing.assert_close(
            expected_best(rewards, values, N), by_enumeration(rewards, values, N)
        )


def test_ties_are_broken_by_no_order():
    rewards = torch.tensor(
        [
            [1.0, 1, 1, 1, 1, 1],  # all alike: the mean, whatever N
            [2.0, 0, 2, 0, 2, 0],
            [0.0, 0, 0, 0, 0, 9],
            [3.0, 1, 1, 2, 2, 2],
        ]
    )
    values = samples(4, 6)[1]
    for N in range(1, 7):
        expected = by_enumeration(rewards, values, N)
        torch.testing.assert_close(expected_best(rewards, values, N), expected)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(N))
        shuffled = expected_best(rewards[:, order], values[:, order], N)
        torch.testing.assert_close(shuffled, expected)
        assert expected[0] == pytest.approx(values[0].mean().item())


def test_one_is_the_mean_and_all_is_the_maximum():
    rewards, values = samples(5, 9)
    torch.testing.assert_close(expected_best(rewards, values, 1), values.mean(1))
    best = values.gather(1, rewards.argmax(1, keepdim=True))[:, 0]
    torch.testing.assert_close(expected_best(rewards, values, 9), best)
    torch.testing.assert_close(expected_best(rewards, rewards, 9), rewards.amax(1))


def test_the_expected_maximum_rises_with_n():
    rewards = samples(6, 12)[0]
    curve = [expected_best(rewards, rewards, N) for N in range(1, 13)]
    for fewer, more in pairwise(curve):
        assert (more > fewer).all()
    with_ties = rewards.round()
    curve = [expected_best(with_ties, with_ties, N) for N in range(1, 13)]
    for fewer, more in pairwise(curve):
        assert (more >= fewer - 1e-12).all()


def test_a_reward_that_misleads_loses_value():
    """Values are looked up, not maximised: the worst are chosen if rewards say so."""
    values = samples(3, 8)[0]
    curve = [expected_best(-values, values, N) for N in (1, 4, 8)]
    assert (curve[0] > curve[1]).all() and (curve[1] > curve[2]).all()
    torch.testing.assert_close(curve[2], values.amin(1))


def test_the_weights_are_shares_of_the_draws():
    for M, N in ((6, 1), (6, 4), (6, 6), (40, 20)):
        weights = best_weights(M, N)
        assert weights.sum().item() == pytest.approx(1)
        assert (weights[: N - 1] == 0).all() and (weights[N - 1 :] > 0).all()
    assert best_weights(4, 2).tolist() == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])


def test_whole_numbers_and_single_precision_will_do():
    rewards, values = torch.tensor([[1, 3, 2]]), torch.tensor([[10, 30, 20]])
    assert expected_best(rewards, values, 2).item() == pytest.approx(80 / 3)
    assert expected_best(rewards, values.float(), 2).dtype is torch.float64


@pytest.mark.parametrize("N", [0, -1, 4])
def test_more_than_there_are_or_none_is_refused(N):
    with pytest.raises(ValueError, match=f"N is {N}, but there are 3 samples"):
        expected_best(torch.zeros(2, 3), torch.zeros(2, 3), N)


@pytest.mark.parametrize("shape", [(2, 4), (3, 2), (1, 3), (3,)])
def test_shapes_that_differ_are_refused(shape):
    with pytest.raises(ValueError, match="one shape"):
        expected_best(torch.zeros(2, 3), torch.zeros(shape), 1)
    with pytest.raises(ValueError, match="one shape"):
        expected_best(torch.zeros(3), torch.zeros(3), 1)


# Any rank, and the median


@pytest.mark.parametrize(("M", "N"), [(1, 1), (5, 1), (5, 3), (6, 4), (7, 7)])
def test_every_rank_is_the_mean_over_all_draws(M, N):
    rewards = samples(1, M)[0]
    ranked = rewards.sort().values[0]
    draws = torch.tensor(list(combinations(range(M), N)))
    seen = ranked[draws].sort(-1).values.mean(0)  # of each rank, lowest first
    for rank in range(1, N + 1):
        weights = order_weights(M, N, rank)
        assert weights.sum().item() == pytest.approx(1)
        assert (weights @ ranked).item() == pytest.approx(seen[rank - 1].item())


def test_the_ranks_share_all_samples_alike():
    """Some rank of a draw must be taken by each of its samples."""
    for M, N in ((6, 2), (9, 5)):
        total = sum(order_weights(M, N, rank) for rank in range(1, N + 1))
        torch.testing.assert_close(total, torch.full((M,), N / M, dtype=torch.float64))


@pytest.mark.parametrize("rank", [0, 3, -1])
def test_a_rank_that_no_draw_has_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank is {rank}, but the ranks of 2"):
        order_weights(5, 2, rank)


@pytest.mark.parametrize("M", [1, 4, 7])
def test_the_median_is_the_mean_over_all_draws(M):
    rewards = samples(3, M)[0]
    rewards[1] = rewards[1].round()  # ties
    for N in range(1, M + 1):
        drawn = [
            [median(row[i] for i in draw) for draw in combinations(range(M), N)]
            for row in rewards.tolist()
        ]
        expected = torch.tensor(drawn, dtype=torch.float64).mean(1)
        torch.testing.assert_close(expected_median(rewards, N), expected)


def test_where_rewards_are_symmetric_the_median_stays_where_it_is():
    rewards = torch.tensor([[-3.0, -1, 0, 1, 3], [2, 4, 5, 6, 8]])
    for N in range(1, 6):
        expected = torch.tensor([0.0, 5], dtype=torch.float64)
        torch.testing.assert_close(expected_median(rewards, N), expected)


def test_a_median_needs_prompts_and_samples():
    with pytest.raises(ValueError, match="prompts, samples"):
        expected_median(torch.zeros(3), 1)
    with pytest.raises(ValueError, match="N is 4, but there are 3"):
        expected_median(torch.zeros(2, 3), 4)


# How far the best of N is from sampling


def policy_of_best(answers, rewards, N):
    """Every sequence of N independent draws; ties are broken by nothing."""
    chosen = Counter()
    for draw in product(range(len(answers)), repeat=N):
        best = max(rewards[i] for i in draw)
        tied = [i for i in draw if rewards[i] == best]
        for i in tied:
            chosen[answers[i]] += 1 / len(tied) / len(answers) ** N
    return chosen


@pytest.mark.parametrize("N", [1, 2, 3, 4])
def test_the_kl_is_that_of_the_policies_over_distinct_answers(N):
    answers = ["a", "b", "a", "c", "d", "e"]
    reward_of = {"a": 1.0, "b": -2.0, "c": 0.5, "d": 0.5, "e": 3.0}  # c and d tie
    rewards = [reward_of[a] for a in answers]
    start, best = Counter(answers), policy_of_best(answers, rewards, N)
    expected = sum(
        q * math.log(q * len(answers) / start[a]) for a, q in best.items() if q
    )
    found = kl_of_best(torch.tensor([rewards]), N)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_the_kl_is_below_its_bound_and_grows():
    rewards = samples(40, 24)[0]
    rewards[10:20] = rewards[10:20].round()
    rewards[20:30] = rewards[20:30].sign()
    rewards[30:] = 1.0
    before = torch.zeros(40, dtype=torch.float64)
    for N in (1, 2, 3, 8, 24, 100):
        kl = kl_of_best(rewards, N)
        assert (kl <= kl_bound(N) + 1e-12).all()
        assert (kl >= before - 1e-12).all()
        assert (kl[:10] >= kl[10:20] - 1e-12).all()  # ties only bring it down
        assert (kl[30:] == 0).all()  # one reward: nothing is chosen
        before = kl
    assert kl_of_best(rewards, 1).abs().max() < 1e-12
    # With ever more samples the bound is reached, where no two tie.
    many = samples(1, 4000)[0]
    assert kl_of_best(many, 8).item() == pytest.approx(kl_bound(8), abs=2e-3)


def test_the_kl_asks_for_the_order_only():
    rewards = samples(4, 10)[0]
    torch.testing.assert_close(kl_of_best(rewards, 5), kl_of_best(rewards.exp(), 5))
    shuffled = rewards[:, torch.randperm(10, generator=torch.Generator())]
    torch.testing.assert_close(kl_of_best(rewards, 5), kl_of_best(shuffled, 5))


def test_a_kl_of_no_draw_is_refused():
    with pytest.raises(ValueError, match="1 or more"):
        kl_of_best(torch.zeros(2, 3), 0)
    with pytest.raises(ValueError, match="prompts, samples"):
        kl_of_best(torch.zeros(3), 1)
    with pytest.raises(ValueError, match="1 or more"):
        kl_bound(0)


# The best temperature


def hill(top, grid, prompts=30, noise=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    curve = -((torch.tensor(grid, dtype=torch.float64) - top) ** 2)
    shake = torch.randn(len(grid), prompts, generator=generator, dtype=torch.float64)
    return curve[:, None] + noise * shake


@pytest.mark.parametrize("grid", [[0.6, 0.8, 1.0, 1.2, 1.4], [0.5, 0.7, 1.0, 1.1, 1.5]])
@pytest.mark.parametrize("top", [0.85, 1.0, 1.07])
def test_the_top_of_a_parabola_is_found_between_the_temperatures(grid, top):
    found = best_temperature(hill(top, grid), grid)
    assert found.temperature == pytest.approx(top)
    assert found.low == pytest.approx(top) and found.high == pytest.approx(top)


def test_a_top_at_the_edge_stays_on_the_grid():
    grid = [0.6, 0.8, 1.0]
    assert best_temperature(hill(0.1, grid), grid).temperature == pytest.approx(0.6)
    assert best_temperature(hill(2.0, grid), grid).temperature == pytest.approx(1.0)
    assert best_temperature(torch.zeros(1, 4), [1.0]).temperature == 1.0
    flat = best_temperature(torch.zeros(3, 4), grid)
    assert 0.6 <= flat.low <= flat.high <= 1.0


def test_the_interval_is_wide_where_prompts_disagree():
    grid = [0.6, 0.8, 1.0, 1.2, 1.4]
    clear = best_temperature(hill(1.0, grid, noise=0.02), grid)
    vague = best_temperature(hill(1.0, grid, noise=0.5), grid)
    assert clear.low <= clear.temperature <= clear.high
    assert clear.high - clear.low < vague.high - vague.low
    assert vague.draws.shape == (1000,)
    assert vague.draws.min() >= 0.6 and vague.draws.max() <= 1.4


def test_two_models_are_redrawn_together():
    """Every prompt has a top of its own, 0.1 higher with the second model."""
    grid = [0.6, 0.8, 1.0, 1.2, 1.4]
    tops = torch.linspace(0.85, 1.05, 12, dtype=torch.float64)
    at = torch.tensor(grid, dtype=torch.float64)[:, None]
    one, two = (best_temperature(-((at - tops - up) ** 2), grid) for up in (0, 0.1))
    assert one.draws.std() > 0.01
    torch.testing.assert_close(two.draws, one.draws + 0.1)
    other = best_temperature(-((at - tops) ** 2), grid, seed=1)
    assert not torch.equal(one.draws, other.draws)


def test_temperatures_must_rise_and_match_the_curves():
    with pytest.raises(ValueError, match="must rise"):
        best_temperature(torch.zeros(2, 4), [1.0, 0.8])
    with pytest.raises(ValueError, match="one row for each of the 2"):
        best_temperature(torch.zeros(3, 4), [0.8, 1.0])
