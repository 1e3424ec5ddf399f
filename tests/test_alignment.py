"""Reward model and judge: bins that hold everything, and ranks that share ties."""

import math
from random import Random

import pytest

from cria.alignment import binned, rank_correlation


def test_every_answer_is_in_one_bin_and_bins_are_about_as_large():
    rng = Random(0)
    scores = [rng.random() for _ in range(100)]
    found = binned(scores, scores, bins=8)
    assert len(found) == 8 and found["n"].sum() == 100
    assert found["n"].min() >= 11 and found["n"].max() <= 14
    assert list(found["score"]) == sorted(found["score"])
    assert found["judged"].to_list() == pytest.approx(found["score"].to_list())


def test_equal_scores_stay_together():
    found = binned([0.0] * 6 + [1.0] * 2, [0, 1] * 4, bins=4)
    assert sorted(found["n"]) == [2, 6]
    assert list(found["judged"]) == [0.5, 0.5]


def test_means_and_widths_of_a_bin():
    found = binned([1, 2, 3, 4], [0, 1, 0, 0], bins=2)
    assert list(found["judged"]) == [0.5, 0.0]
    assert found["half"][0] == pytest.approx(1.96 * math.sqrt(0.5 / 2))
    assert found["half"][1] == 0
    assert binned([1.0], [0.5], bins=3)["half"].to_list() == [0.0]


def test_ranks_not_values():
    assert rank_correlation([1, 2, 3], [1, 10, 100]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [5, 0, -99]) == pytest.approx(-1)
    # by hand, with a tie: ranks 1 2.5 2.5 4 and 1 2 3 4
    assert rank_correlation([0, 5, 5, 9], [0, 1, 2, 3]) == pytest.approx(
        4.5 / 22.5**0.5
    )


def test_independent_scores_have_no_order():
    rng = Random(1)
    one, other = ([rng.random() for _ in range(4000)] for _ in range(2))
    assert abs(rank_correlation(one, other)) < 0.05
    assert math.isnan(rank_correlation([1, 1], [0, 1]))
