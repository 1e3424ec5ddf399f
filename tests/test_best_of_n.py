"""The best of N: order statistics against every single draw."""

from itertools import combinations, pairwise

import pytest
import torch

from cria.best_of_n import best_weights, expected_best


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
