"""Win rates: every answer against every other, ties, and kinds that weigh the same."""

from random import Random

import pandas as pd
import pytest

from cria.win_rates import against, compared


def answers(**kinds):
    """kind=[[scores of the answers to a prompt], …] → one row an answer."""
    return pd.DataFrame(
        [
            {"kind": kind, "id": f"{kind}/{i}", "helpfulness": score}
            for kind, several in kinds.items()
            for i, scores in enumerate(several)
            for score in scores
        ]
    )


def test_all_pairs_by_hand():
    # 0.9 wins twice, 0.5 ties once and wins once, 0.1 loses once and ties once
    assert compared([0.9, 0.5, 0.1], [0.5, 0.1]) == pytest.approx((3 / 6, 2 / 6, 1 / 6))


def test_a_difference_of_exactly_the_tie_is_one():
    assert compared([0.3], [0.25])[1] == compared([0.85], [0.9])[1] == 1
    assert compared([0.31], [0.25])[0] == 1 and compared([0.25], [0.31])[2] == 1
    assert compared([0.31], [0.25], tie=0.1)[1] == 1


def test_turned_round_wins_are_losses():
    rng = Random(0)
    ours = answers(fact=[[rng.random() for _ in range(3)] for _ in range(8)])
    theirs = answers(fact=[[rng.random() for _ in range(5)] for _ in range(8)])
    one = against(ours, theirs, "helpfulness", ["fact"])
    other = against(theirs, ours, "helpfulness", ["fact"])
    assert one.win == pytest.approx(other.loss) and one.tie == pytest.approx(other.tie)
    assert one.rate.mean == pytest.approx(1 - other.rate.mean)
    assert one.rate.half == pytest.approx(other.rate.half)
    assert one.win + one.tie + one.loss == pytest.approx(1)
    assert one.rate.mean == pytest.approx(one.win + one.tie / 2)


def test_against_itself_it_is_a_draw():
    ours = answers(fact=[[0.1, 0.9], [0.4, 0.5]], sum=[[0.0, 1.0, 1.0]])
    found = against(ours, ours, "helpfulness", ["fact", "sum"])
    assert found.rate.mean == pytest.approx(0.5) and found.win == found.loss


def test_kinds_weigh_the_same_and_others_do_not_count():
    ours = answers(fact=[[1.0]] * 9, sum=[[0.0]], harm=[[0.0]])
    theirs = answers(fact=[[0.5]] * 9, sum=[[0.5]], harm=[[1.0]])
    found = against(ours, theirs, "helpfulness", ["fact", "sum"])
    assert found.rate.mean == 0.5 and found.rate.n == 10


def test_a_prompt_counts_once_however_many_answers_it_has():
    few, many = [[1.0]], [[0.0] * 20]
    found = against(
        answers(fact=few + many), answers(fact=[[0.5]] * 2), "helpfulness", ["fact"]
    )
    assert found.rate.mean == 0.5


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Two models that are equally good: the truth is a half."""
    rng, hits = Random(1), 0
    for _ in range(300):
        ours, theirs = (
            answers(fact=[[rng.random() for _ in range(2)] for _ in range(40)])
            for _ in range(2)
        )
        rate = against(ours, theirs, "helpfulness", ["fact"], tie=0.0).rate
        hits += rate.low < 0.5 < rate.high
    assert 270 < hits < 297


def test_other_prompts_are_no_comparison():
    with pytest.raises(ValueError, match="same prompts"):
        against(
            answers(fact=[[1.0]]), answers(fact=[[1.0]] * 2), "helpfulness", ["fact"]
        )
    with pytest.raises(ValueError, match="needs an answer"):
        compared([], [1.0])
