"""Packing: every token once, and no document sees another."""

import numpy as np
import pytest
import torch

from cria.config import ModelConfig
from cria.model import Llama
from cria.packing import batches, n_steps, pack, split, unpacked
from cria.training import lm_loss

MODEL = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=50, multiple_of=16
)


def make_docs(n, low, high, seed=0):
    """Documents of random ids, each with a random loss mask."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(low, high, n)
    return [
        (rng.integers(1, 50, k).tolist(), (rng.random(k) < 0.6).tolist())
        for k in lengths
    ]


def documents_in(rows):
    """The (ids, loss mask) of every document in the rows, found by its doc id."""
    found = []
    for ids, doc_ids, mask in zip(rows.ids, rows.doc_ids, rows.loss_mask, strict=True):
        for doc in doc_ids.unique().tolist():
            if doc < 0:
                continue
            where = (doc_ids == doc).nonzero().flatten()
            assert (where.diff() == 1).all(), "a document lies in one piece"
            found.append((tuple(ids[where].tolist()), tuple(mask[where].tolist())))
    return sorted(found)


def expected(docs, seq_len):
    """The same list from the documents: cut to a row, first token not predicted."""
    return sorted(
        (tuple(ids[:seq_len]), (False, *mask[1:seq_len])) for ids, mask in docs
    )


PACKERS = {
    "tight": lambda docs, n: pack(docs, n),
    "in order": lambda docs, n: pack(docs, n, keep_order=True),
    "unpacked": unpacked,
}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("high", [20, 90])  # 90: some are longer than a row
def test_no_token_is_lost_or_invented(packer, high):
    docs = make_docs(300, 1, high)
    rows = PACKERS[packer](docs, 64)
    assert documents_in(rows) == expected(docs, 64)
    assert rows.ids.shape[1] <= 64
    too_long = [len(ids) for ids, _ in docs if len(ids) > 64]
    assert rows.n_docs == 300
    assert rows.n_cut == len(too_long)
    assert rows.tokens_cut == sum(too_long) - 64 * len(too_long)
    assert rows.tokens == sum(len(ids) for ids, _ in docs) - rows.tokens_cut
    assert not rows.loss_mask[rows.doc_ids < 0].any(), "padding is never predicted"


def test_no_mask_means_all_but_the_first_token():
    rows = pack([([5, 6, 7], None), ([8, 9], None)], 8)
    assert rows.loss_mask.sum() == 3
    assert rows.doc_ids.tolist() == [[0, 0, 0, 1, 1, -1, -1, -1]]


def test_rows_are_nearly_as_few_as_possible():
    """Full rows are cut at random places: the pieces fit in N rows, by construction.

    Longest-first greedy packing needs at most 11/9 N + 1 (Dósa 2007); on pieces of
    these sizes it does far better.
    """
    rng = np.random.default_rng(1)
    docs = []
    for _ in range(100):
        cuts = np.sort(rng.choice(np.arange(1, 128), 6, replace=False))
        docs += [([1] * k, None) for k in np.diff([0, *cuts, 128])]
    rng.shuffle(docs)
    assert 100 <= len(pack(docs, 128)) <= 103
    assert 100 <= len(pack(docs, 128, keep_order=True)) <= 112


def test_keep_order_leaves_a_mixed_stream_mixed():
    """Short documents of 1s and long ones of 2s: rows hold both only in order."""
    rng = np.random.default_rng(0)
    docs = []
    for kind in rng.integers(1, 3, 400).tolist():
        length = rng.integers(3, 9) if kind == 1 else rng.integers(15, 30)
        docs.append(([kind] * int(length), None))

    def rows_with_both(rows):
        both = (rows.ids == 1).any(1) & (rows.ids == 2).any(1)
        return both.float().mean().item()

    assert rows_with_both(pack(docs, 128, keep_order=True)) > 0.8
    assert rows_with_both(pack(docs, 128)) < 0.5


@pytest.mark.parametrize(
    ("docs", "says"),
    [
        ([], "no documents"),
        ([([1], None), ([], None)], "Document 1 has no tokens"),
        ([([1, 2], [True])], "Document 0 has 2 ids but a loss mask of 1"),
    ],
)
def test_bad_documents_are_named(docs, says):
    with pytest.raises(ValueError, match=says):
        pack(docs, 8)


def test_changing_one_document_leaves_the_others_logits_alone():
    """Bit for bit, and the changed document's own logits do move."""
    docs = make_docs(40, 3, 30)
    rows = pack(docs, 96)
    row = int((rows.doc_ids.max(1).values >= 2).nonzero()[0])
    ids, doc_ids = rows.ids[row : row + 1], rows.doc_ids[row : row + 1]
    model = Llama(MODEL, seed=0).eval()
    for changed in (0, 1):
        other = torch.where(doc_ids == changed, (ids + 7) % 50, ids)
        with torch.no_grad():
            before, after = model(ids, doc_ids), model(other, doc_ids)
        same = (doc_ids != changed) & (doc_ids >= 0)
        assert torch.equal(before[same], after[same])
        assert not torch.equal(before[doc_ids == changed], after[doc_ids == changed])


@pytest.mark.parametrize("keep_order", [False, True])
def test_packed_loss_is_unpacked_loss(keep_order):
    docs = make_docs(60, 2, 40)
    model = Llama(MODEL, seed=0).eval()
    losses = []
    for rows in (pack(docs, 64, keep_order=keep_order), unpacked(docs, 64)):
        with torch.no_grad():
            logits = model(rows.ids, rows.doc_ids)
        losses.append(lm_loss(logits, rows.ids, rows.loss_mask).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_each_epoch_shows_every_row_once():
    docs = [([i + 1] * 5, None) for i in range(7)]
    batch = batches(unpacked(docs, 5), batch_size=3, seed=0)
    firsts = torch.cat([batch(step)["ids"][:, 0] for step in range(14)]).tolist()
    epochs = [firsts[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(1, 8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1, "epochs differ in order"
    assert n_steps(unpacked(docs, 5), 3, epochs=6) == 14


def test_a_batch_depends_on_rows_seed_and_step_alone():
    rows = pack(make_docs(200, 3, 30), 64)
    one, two = batches(rows, 4, seed=3), batches(rows, 4, seed=3)
    ahead = [one(step)["ids"] for step in range(60)]
    for step in (59, 0, 31, 17, 31):  # as a resumed run would ask
        assert torch.equal(two(step)["ids"], ahead[step])
    other = batches(rows, 4, seed=4)
    assert not torch.equal(other(0)["ids"], ahead[0])


def test_batches_leave_out_padding_and_nothing_else():
    rows = unpacked(make_docs(50, 3, 40), 64)
    batch = batches(rows, 4, seed=0)
    for step in range(12):
        got = batch(step)
        assert (got["doc_ids"][:, -1] >= 0).any(), "the last column holds a token"
    seen = sum(int((batch(s)["doc_ids"] >= 0).sum()) for s in range(25))  # 2 epochs
    assert seen == 2 * rows.tokens


def test_a_batch_larger_than_the_data_repeats_it():
    batch = batches(unpacked([([1, 2], None), ([3, 4], None)], 4), 6, seed=0)
    assert sorted(batch(0)["ids"][:, 0].tolist()) == [1, 1, 1, 3, 3, 3]


def test_split_keeps_equal_documents_together():
    docs = make_docs(400, 1, 4, seed=2)  # short: many are equal
    train, held_out = split(docs, 0.25, seed=0)
    assert len(train) + len(held_out) == len(docs)
    left = {tuple(ids) for ids, _ in train}
    right = {tuple(ids) for ids, _ in held_out}
    assert left.isdisjoint(right)
    assert len(right) == round(0.25 * len(left | right))
    assert split(docs, 0.25, seed=0) == (train, held_out)
    assert split(docs, 0.25, seed=1) != (train, held_out)


def test_split_of_texts():
    texts = ["a rhyme", "a sum", "a rhyme", "a tale"]
    train, held_out = split(texts, 0.34, seed=0)
    assert sorted(train + held_out) == sorted(texts)
    assert set(train).isdisjoint(held_out)
    with pytest.raises(ValueError, match="share"):
        split(texts, 1.0, seed=0)
