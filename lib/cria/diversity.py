"""How alike several answers to one prompt are: Self-BLEU (paper §5.1, Fig. 21).

BLEU (Papineni et al., 2002) asks which share of an answer's n-grams stand in its
references as well. Self-BLEU (Zhu et al., 2018) takes the other answers to the same
prompt for references: 1, all answers are one; near 0, they have no words in common.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["bleu", "self_bleu", "words"]

ORDER = 4  # n-grams of one to so many words
WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """The words and the punctuation marks of a text."""
    return WORD.findall(text)


def bleu(answer: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of a sequence of words against several others, 0 to 1.

    exp(mean over n of log p_n) · min(1, exp(1 − r/c)): p_n is the share of the
    answer's n-grams that the references have (each as often, at most, as the one that
    has it most often), c the answer's length, r the nearest length of a reference.
    Answers here are short. So n goes up to the answer's own length (at most 4), and for
    n > 1 one is added above and below, as in Lin and Och (2004): a single missing
    4-gram would make the product 0. Two empty sequences are alike: 1.

    Raises ValueError if there is no reference.
    """
    return _bleu(_Counted(answer), [_Counted(other) for other in references])


def self_bleu(answers: Sequence[Sequence[str]]) -> float:
    """The mean BLEU of each of K ≥ 2 answers (sequences of words) against the others.

    1 − self_bleu is called the diversity. Raises ValueError for fewer than two.
    """
    if len(answers) < 2:
        raise ValueError(
            f"there are {len(answers)} answers, but Self-BLEU needs two or more to "
            "compare."
        )
    counted = [_Counted(answer) for answer in answers]
    found: dict[tuple[str, ...], float] = {}  # equal answers have equal others
    for i, (answer, one) in enumerate(zip(answers, counted, strict=True)):
        if tuple(answer) not in found:
            others = counted[:i] + counted[i + 1 :]
            found[tuple(answer)] = _bleu(one, others)
    return math.fsum(found[tuple(answer)] for answer in answers) / len(answers)


class _Counted:
    """A sequence's length, and how often each of its n-grams occurs, n = 1 … 4."""

    def __init__(self, sequence: Sequence[str]):
        self.length = len(sequence)
        self.ngrams = [
            Counter(tuple(sequence[i : i + n]) for i in range(self.length - n + 1))
            for n in range(1, ORDER + 1)
        ]


def _bleu(answer: _Counted, references: Sequence[_Counted]) -> float:
    if not references:
        raise ValueError("BLEU needs a reference to compare with.")
    if answer.length == 0:
        return float(any(other.length == 0 for other in references))
    orders = min(ORDER, answer.length)
    total = 0.0
    for n in range(orders):
        here = answer.ngrams[n]
        shared = sum(
            min(count, max(other.ngrams[n][gram] for other in references))
            for gram, count in here.items()
        )
        if shared == 0 and n == 0:
            return 0.0  # not a single word in common
        added = 1 if n > 0 else 0
        total += math.log((shared + added) / (here.total() + added))
    # of two lengths that are equally near, the shorter one
    nearest = min(
        (other.length for other in references),
        key=lambda length: (abs(length - answer.length), length),
    )
    brevity = min(1.0, math.exp(1 - nearest / answer.length))
    return brevity * math.exp(total / orders)
