"""Which samples to learn from: properties of the strategies, on hand-made pools."""

from collections import Counter

import pytest

from cria import world
from cria.selection import (
    Sample,
    balanced,
    best,
    by_prompt,
    ended,
    of_round,
    randomly,
    read_pool,
    rescored,
    write_pool,
)
from cria.world.prompts import prompts

ASKED = prompts(world.load(), "sum", "train", 3)


def pool(*rows):
    """(which prompt, id of the answer, round, score) → samples."""
    return [Sample(ASKED[p], (i, 2), r, s) for p, i, r, s in rows]


def test_the_best_of_every_prompt_and_one_each():
    samples = pool((0, 5, 1, 0.1), (1, 6, 1, -3.0), (0, 7, 1, 0.9), (1, 8, 1, -2.0))
    assert [s.ids[0] for s in best(samples)] == [7, 8]


def test_of_equals_the_earliest_wins():
    samples = pool((0, 5, 1, 1.0), (0, 6, 2, 1.0))
    assert best(samples)[0].ids[0] == 5


def test_more_samples_never_give_a_lower_best():
    """The nested maximum is monotone."""
    samples = pool(*((0, i, 1, (i * 37 % 11) / 10) for i in range(20)))
    tops = [best(samples[: k + 1])[0].score for k in range(20)]
    assert tops == sorted(tops)
    assert tops[0] < tops[-1]


def test_random_is_uniform_over_the_same_samples_and_repeatable():
    samples = pool(*((0, i, 1, float(i)) for i in range(4)))
    assert randomly(samples, 7) == randomly(samples, 7)
    drawn = Counter(randomly(samples, seed)[0].ids[0] for seed in range(400))
    assert set(drawn) == {0, 1, 2, 3}
    assert min(drawn.values()) > 60


def test_random_has_one_answer_a_prompt_as_best_has():
    samples = pool((0, 5, 1, 0.1), (1, 6, 1, -3.0), (0, 7, 1, 0.9), (2, 8, 1, -2.0))
    assert [s.prompt for s in randomly(samples, 0)] == [s.prompt for s in best(samples)]


def test_the_previous_round_only_forgets_the_others():
    samples = pool((0, 5, 1, 0.9), (0, 6, 2, 0.1), (1, 7, 1, 0.5))
    assert [s.ids[0] for s in of_round(samples, 2)] == [6]


def test_what_was_cut_off_is_not_kept_however_high_its_reward():
    whole, cut = Sample(ASKED[0], (5, 2), 1, 0.1), Sample(ASKED[0], (6, 6), 1, 9.0)
    other = Sample(ASKED[1], (7, 7), 1, 3.0)  # nothing else was said to this prompt
    assert best([cut, whole, other])[0] is cut, "the reward alone would choose it"
    assert ended([cut, whole, other], eos_id=2) == [whole, other]
    assert ended([Sample(ASKED[0], (), 1, 0.0), whole], eos_id=2) == [whole]
    assert ended([cut, whole], eos_id=6) == [cut]


def test_the_pool_keeps_an_old_answer_that_is_still_best():
    samples = pool((0, 5, 1, 0.9), (0, 6, 2, 0.1))
    assert best(samples)[0].round == 1


def test_a_rescored_pool_goes_by_the_new_scores_alone():
    samples = pool((0, 5, 1, 99.0), (0, 6, 2, 0.1))
    new = rescored(samples, lambda several: [float(s.ids[0]) for s in several])
    assert best(new)[0].ids[0] == 6
    assert [s.score for s in samples] == [99.0, 0.1]  # the old ones are left alone


def test_rescoring_asks_for_a_score_each():
    with pytest.raises(ValueError):
        rescored(pool((0, 5, 1, 0.0), (0, 6, 1, 0.0)), lambda several: [1.0])


def test_by_prompt_keeps_the_order():
    samples = pool((1, 5, 1, 0.0), (0, 6, 1, 0.0), (1, 7, 1, 0.0))
    groups = by_prompt(samples)
    assert [s.ids[0] for s in groups[ASKED[1].id]] == [5, 7]


def test_a_pool_on_disk_is_the_same_pool(tmp_path):
    samples = pool((0, 5, 1, 0.25), (1, 6, 2, -1.5))
    write_pool(samples, tmp_path / "pool.json")
    assert read_pool(tmp_path / "pool.json") == samples


def test_rare_kinds_are_repeated_to_their_share_and_nothing_is_lost():
    (greeting,) = prompts(world.load(), "greet", "train", 1)
    rare = Sample(greeting, (9, 2), 1, 0.0)
    samples = [*pool(*((0, i, 1, 0.0) for i in range(9))), rare]
    found = balanced(samples, {"sum": 0.5, "greet": 0.5})
    assert found[:10] == samples
    assert found[10:] == [rare] * 4, "half of ten"
    assert balanced(samples, {"sum": 0.9, "greet": 0.1}) == samples
    assert balanced(samples, {"sum": 0.5, "rhyme": 0.5}) == samples  # none to repeat
