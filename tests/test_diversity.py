"""BLEU and Self-BLEU: what they must be on answers that can be counted by hand."""

import math
from random import Random

import pytest

from cria.diversity import bleu, self_bleu, words


def random_answers(n, seed=0, vocabulary="a b c d e f", longest=9):
    rng = Random(seed)
    return [rng.choices(vocabulary.split(), k=rng.randint(4, longest))
            for _ in range(n)]  # fmt: skip


def test_words_and_punctuation_are_apart():
    assert words("Paul's cat, aged 7.") == ["Paul", "'", "s", "cat", ",", "aged", "7",
                                            "."]  # fmt: skip


def test_by_hand():
    """Three of four words; one of three pairs; no triple of two; no four of one."""
    found = bleu(["the", "cat", "sat", "down"], [["the", "cat", "ran", "down"]])
    # one is added above and below for pairs, triples and fours
    expected = (3 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** (1 / 4)
    assert found == pytest.approx(expected)


def test_an_n_gram_counts_as_often_as_one_reference_has_it():
    """Papineni's example: seven times "the" is no good translation."""
    answer = ["the"] * 3
    once = bleu(answer, [["the", "a", "b"], ["the", "c", "d"]])
    twice = bleu(answer, [["the", "the", "b"]])
    assert once == pytest.approx((1 / 3 * 1 / 3 * 1 / 2) ** (1 / 3))
    assert twice == pytest.approx((2 / 3 * 2 / 3 * 1 / 2) ** (1 / 3))


def test_short_answers_are_cut_and_long_ones_are_not():
    reference = ["a", "b", "c", "d", "e", "f", "g", "h"]
    assert bleu(reference[:4], [reference]) == pytest.approx(math.exp(1 - 8 / 4))
    assert bleu([*reference, "z"], [reference]) < 1  # the z itself
    # of two lengths that are equally near, the shorter one
    assert bleu(reference[:6], [reference[:4], reference]) == 1


def test_it_lies_between_no_word_in_common_and_the_same():
    for one in random_answers(40):
        assert bleu(one, [one]) == pytest.approx(1)
        assert bleu(one, [["x", "y"], one]) == pytest.approx(1)
        assert bleu(one, [["x"] * len(one)]) == 0
        assert 0 <= bleu(one, random_answers(3, seed=1)) <= 1


def test_short_and_empty_answers():
    assert bleu(["yes"], [["yes"]]) == bleu(["yes", "."], [["yes", "."]]) == 1
    assert bleu([], [["yes"]]) == 0 and bleu([], [[], ["yes"]]) == 1
    assert bleu(["yes"], [[]]) == 0


def test_nltk_agrees():
    """On answers of four words or more; on shorter ones its 4-grams are not there."""
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    smooth = nltk.SmoothingFunction().method2
    for seed in range(150):
        answer, *others = random_answers(5, seed)
        if not set(answer) & {word for other in others for word in other}:
            continue
        theirs = nltk.sentence_bleu(others, answer, smoothing_function=smooth)
        assert bleu(answer, others) == pytest.approx(theirs), (answer, others)


def test_self_bleu_is_the_mean_against_the_others():
    answers = random_answers(6, seed=3)
    answers.append(list(answers[0]))  # twice the same
    one_by_one = [
        bleu(answer, answers[:i] + answers[i + 1 :]) for i, answer in enumerate(answers)
    ]
    assert self_bleu(answers) == pytest.approx(sum(one_by_one) / len(answers))
    assert one_by_one[0] == pytest.approx(1), "its twin is among the others"


def test_the_order_of_the_answers_does_not_matter():
    answers = random_answers(8, seed=5)
    shuffled = Random(0).sample(answers, 8)
    assert self_bleu(shuffled) == pytest.approx(self_bleu(answers))


def test_from_one_answer_over_and_over_to_all_different():
    same = [["a", "b", "c", "d"]] * 4
    some = [*same[:2], ["a", "b", "x", "y"], ["p", "q", "r", "s"]]
    none = [[letter * k for k in range(1, 5)] for letter in "abcd"]
    assert self_bleu(same) == pytest.approx(1) and self_bleu(none) == 0
    assert 0 < self_bleu(some) < 1


def test_nothing_to_compare_with():
    with pytest.raises(ValueError, match="two or more"):
        self_bleu([["a"]])
    with pytest.raises(ValueError, match="needs a reference"):
        bleu(["a"], [])
