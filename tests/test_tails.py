"""The bad tail: weights by kind, exact shares, and honest intervals."""

from random import Random

import numpy as np
import pandas as pd
import pytest

from cria.tails import lowest, share_under, tail_change, weights


def test_kinds_weigh_the_same():
    found = weights(["fact"] * 3 + ["sum"])
    assert found.sum() == pytest.approx(1)
    assert found[:3].sum() == pytest.approx(found[3])


def test_share_under_a_bound():
    values = np.array([0.1, 0.3, 0.3, 0.9])
    even = np.full(4, 0.25)
    assert share_under(values, even, 0.3) == 0.25  # the bound itself is not below it
    assert share_under(values, even, 1.0) == 1
    assert share_under(values, np.array([3, 1, 1, 1]), 0.3) == 0.5


def test_the_lowest_part_with_a_part_of_an_answer():
    values = np.array([0.8, 0.0, 0.4, 1.0])
    even = np.full(4, 0.25)
    assert lowest(values, even, 0.25) == 0.0
    assert lowest(values, even, 0.5) == pytest.approx(0.2)
    assert lowest(values, even, 0.375) == pytest.approx((0.0 * 2 + 0.4) / 3)
    assert lowest(values, even, 1.0) == pytest.approx(values.mean())
    assert lowest(values, 7 * even, 0.5) == pytest.approx(0.2)  # weights need no sum


def test_the_lowest_part_grows_with_the_share():
    rng = Random(0)
    values = np.array([rng.random() for _ in range(30)])
    weight = np.array([rng.random() for _ in range(30)])
    steps = [lowest(values, weight, k / 20) for k in range(1, 21)]
    assert steps == sorted(steps) and steps[0] >= values.min() - 1e-12
    with pytest.raises(ValueError, match="above 0"):
        lowest(values, weight, 0.0)


def answers(scores_by_prompt, kind="fact"):
    return pd.DataFrame(
        [
            {"kind": kind, "id": f"{kind}/{i}", "gold": score}
            for i, scores in enumerate(scores_by_prompt)
            for score in scores
        ]
    )


def test_what_is_the_same_has_not_changed():
    one = answers([[0.1, 0.9], [0.5, 0.2]])
    found = tail_change(one, one, "gold", lowest)
    assert found.mean == 0 and found.half == 0 and found.n == 2


def test_a_tail_that_is_cut_off():
    before = answers([[0.0] + [0.8] * 9] * 20)
    after = answers([[0.8] * 10] * 20)
    found = tail_change(after, before, "gold", lowest)
    assert found.mean == pytest.approx(0.8) and found.half == pytest.approx(0)
    rarer = tail_change(after, before, "gold", lambda v, w: share_under(v, w, 0.3))
    assert rarer.mean == pytest.approx(-0.1)


def test_a_kind_with_many_answers_does_not_drown_another():
    mixed = pd.concat([answers([[1.0] * 50]), answers([[0.0]], "sum")])
    good = pd.concat([answers([[1.0] * 50]), answers([[1.0]], "sum")])

    def mean(values, weight):
        return float((values * weight).sum())

    assert tail_change(good, mixed, "gold", mean, draws=2).mean == pytest.approx(0.5)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Prompts differ, and what is gained differs from prompt to prompt."""
    rng, hits = np.random.default_rng(0), 0

    def mean(values, weight):
        return float((values * weight).sum())

    for _ in range(120):
        level, gained = rng.normal(0.5, 0.2, 30), rng.normal(0.1, 0.1, 30)
        before = answers([[a] for a in level])
        after = answers([[a + b] for a, b in zip(level, gained, strict=True)])
        found = tail_change(after, before, "gold", mean, draws=100)
        hits += found.low < 0.1 < found.high
    assert 104 < hits < 120


def test_redraws_depend_on_the_seed_alone():
    rng = Random(2)
    one, other = (
        answers([[rng.random() for _ in range(3)] for _ in range(9)]) for _ in range(2)
    )
    first, second = (tail_change(one, other, "gold", lowest, seed=4) for _ in range(2))
    assert first == second and first.half > 0
    with pytest.raises(ValueError, match="same prompts"):
        tail_change(one, answers([[0.5]]), "gold", lowest)
