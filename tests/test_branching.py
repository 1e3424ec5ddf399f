"""Rows that hold a prompt once and several answers to it."""

import pytest
import torch

from cria.branching import PADDING, before, branched, last_tokens

ROWS = [
    ([1, 7, 8], [[5, 6, 2], [9, 2]]),
    ([1], [[4], [5, 6]]),
    ([1, 3], [[8, 8, 8, 8]]),  # one answer only
]


def test_a_row_is_its_prompt_and_its_answers_end_to_end():
    made = branched(ROWS)
    assert made.ids.dtype is made.branches.dtype is torch.int64
    assert made.ids.tolist() == [
        [1, 7, 8, 5, 6, 2, 9, 2],
        [1, 4, 5, 6, 0, 0, 0, 0],
        [1, 3, 8, 8, 8, 8, 0, 0],
    ]
    pad = PADDING
    assert made.branches.tolist() == [
        [0, 0, 0, 1, 1, 1, 2, 2],
        [0, 1, 2, 2, pad, pad, pad, pad],
        [0, 0, 1, 1, 1, 1, pad, pad],
    ]
    assert pad < 0, "else padding would be an answer"


def test_nothing_is_lost_or_added():
    """Reading the row back by its branches gives the prompt and the answers."""
    made = branched(ROWS)
    for (prompt, answers), ids, branches in zip(
        ROWS, made.ids, made.branches, strict=True
    ):
        parts = [ids[branches == k].tolist() for k in range(len(answers) + 1)]
        assert parts == [prompt, *answers]


def test_an_answer_ends_at_its_own_last_token():
    """Wherever padding begins; the id there is the answer's last."""
    made = branched(ROWS)
    last = last_tokens(made.branches)
    assert last.tolist() == [[5, 7], [1, 3], [5, 0]]
    for (_, answers), ids, columns in zip(ROWS, made.ids, last, strict=True):
        for answer, column in zip(answers, columns, strict=False):
            assert ids[column] == answer[-1]


def test_every_token_of_an_answer_is_foretold_from_what_it_follows():
    made = branched(ROWS)
    columns = before(made.branches)
    for (prompt, answers), ids, branches, where in zip(
        ROWS, made.ids, made.branches, columns, strict=True
    ):
        for k, answer in enumerate(answers, start=1):
            read = ids[where[branches == k]].tolist()
            assert read == [prompt[-1], *answer[:-1]]
            first = where[branches == k][0]
            assert first == len(prompt) - 1, "from the prompt, not another answer"


@pytest.mark.parametrize("row", [([], [[1]]), ([1], [[2], []]), ([1], [])])
def test_what_has_no_tokens_is_refused(row):
    with pytest.raises(ValueError, match="no tokens"):
        branched([ROWS[0], row])
