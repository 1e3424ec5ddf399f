"""Documents into rows: whole, side by side, and strangers to each other.

A row of `seq_len` slots holds several documents (paper §3.1 packs prompts and
answers this way). Nothing runs over the end of a row, and `doc_ids` tells the model
who may see whom: attention and positions start afresh with every document.

    rows = pack(docs, seq_len=256)           # docs: (ids, loss_mask) pairs
    batch = batches(rows, 16, seed=0)        # batch(step) → a dict of tensors
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor

__all__ = ["Rows", "batches", "n_steps", "pack", "split", "unpacked"]

PADDING = -1  # the doc id of an empty slot

# (ids, loss_mask): loss_mask[t] says whether token t is predicted; None: every one is.
Document = tuple[Sequence[int], Sequence[bool] | None]


@dataclass(frozen=True)
class Rows:
    """N rows of L slots, ready for `batches`."""

    ids: Tensor  # (N, L) int64
    doc_ids: Tensor  # (N, L) int64: 0, 1, … within a row, −1 for padding
    loss_mask: Tensor  # (N, L) bool: this token is predicted, and its loss counts
    n_docs: int
    n_cut: int  # documents longer than a row …
    tokens_cut: int  # … and how many of their tokens were left out

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Slots that hold a token."""
        return int((self.doc_ids != PADDING).sum())

    @property
    def fill(self) -> float:
        """Share of the slots that hold a token, 0 to 1."""
        return self.tokens / self.ids.numel()

    def __str__(self) -> str:
        text = (
            f"{self.n_docs:,} documents in {len(self):,} rows of "
            f"{self.ids.shape[1]}, {self.fill:.1%} full"
        )
        if self.n_cut:
            text += f", {self.n_cut:,} cut ({self.tokens_cut:,} tokens left out)"
        return text


def pack(
    docs: Iterable[Document],
    seq_len: int,
    *,
    keep_order: bool = False,
    pad_id: int = 0,
) -> Rows:
    """Several whole documents a row, in as few rows as a greedy rule finds.

    Best fit: each document goes where it leaves the least room. Longest first
    (the default) packs tightest, but neighbours are then of like length;
    `keep_order` takes the documents as they come, so that the rows of a long mixed
    stream stay mixed: for pre-training. A document longer than `seq_len` is cut and
    counted. `pad_id` fills empty slots, which nobody reads. An empty document is an
    error.
    """
    flat, mask, lengths = _flatten(docs)
    kept = np.minimum(lengths, seq_len)
    order = np.arange(len(kept)) if keep_order else np.argsort(-kept, kind="stable")
    rows, starts, numbers = _best_fit(kept[order].tolist(), seq_len)
    row, start, number = (np.empty_like(kept) for _ in range(3))
    row[order], start[order], number[order] = rows, starts, numbers
    return _lay_out(flat, mask, lengths, row, start, number, seq_len, pad_id)


def unpacked(docs: Iterable[Document], seq_len: int, *, pad_id: int = 0) -> Rows:
    """One document a row, padded on the right: the control that packing must beat.

    Rows are as long as the longest document, at most `seq_len`; `batches` trims each
    batch to its own longest, so no slot is wasted that need not be.
    """
    flat, mask, lengths = _flatten(docs)
    row = np.arange(len(lengths))
    zeros = np.zeros_like(lengths)
    seq_len = min(seq_len, int(lengths.max()))
    return _lay_out(flat, mask, lengths, row, zeros, zeros, seq_len, pad_id)


def batches(rows: Rows, batch_size: int, seed: int) -> Callable[[int], dict]:
    """A function step → {"ids", "doc_ids", "loss_mask"}, each (batch_size, ≤ L).

    Every epoch goes through all rows once in an order of its own; a batch may end
    one epoch and begin the next, so all batches have `batch_size` rows. It depends
    on nothing but (rows, seed, step): a run that resumes needs no state from here.
    Columns that are padding in the whole batch are left out.
    """
    if batch_size < 1 or len(rows) < 1:
        raise ValueError(
            f"batch_size is {batch_size} and there are {len(rows)} rows: both must be "
            "at least 1."
        )

    @lru_cache(maxsize=2)  # a batch touches two epochs at most, unless it holds more
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(len(rows))

    def batch(step: int) -> dict[str, Tensor]:
        places = np.arange(step * batch_size, (step + 1) * batch_size)
        picked = [order(int(p // len(rows)))[p % len(rows)] for p in places]
        index = torch.from_numpy(np.array(picked))
        doc_ids = rows.doc_ids[index]
        used = (doc_ids != PADDING).any(0).nonzero()
        width = int(used[-1]) + 1
        return {
            "ids": rows.ids[index, :width],
            "doc_ids": doc_ids[:, :width],
            "loss_mask": rows.loss_mask[index, :width],
        }

    return batch


def n_steps(rows: Rows, batch_size: int, epochs: float = 1) -> int:
    """Steps that show every row `epochs` times (rounded up)."""
    return -(-round(len(rows) * epochs) // batch_size)


def split(
    docs: Iterable,
    share: float,
    seed: int,
    key: Callable[[object], Hashable] | None = None,
) -> tuple[list, list]:
    """(train, held out), with equal documents always on the same side.

    Split before packing: rows mix documents, and a copy in training makes a
    held-out document worthless. `share` is the part of the *different* documents
    that is held out. `key` says what makes two equal: by default the text, or the
    ids of an (ids, mask) pair.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; it must be above 0 and below 1.")
    docs = list(docs)
    keys = [(key or _content)(doc) for doc in docs]
    different = list(dict.fromkeys(keys))
    order = np.random.default_rng(seed).permutation(len(different))
    n_held_out = round(share * len(different))
    held_out = {different[i] for i in order[:n_held_out]}
    train = [doc for doc, k in zip(docs, keys, strict=True) if k not in held_out]
    rest = [doc for doc, k in zip(docs, keys, strict=True) if k in held_out]
    return train, rest


def _content(doc) -> Hashable:
    return doc if isinstance(doc, str) else tuple(map(int, doc[0]))


def _flatten(docs: Iterable[Document]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ids in one array, all masks in another, and the documents' lengths."""
    docs = list(docs)
    lengths = np.array([len(ids) for ids, _ in docs], dtype=np.int64)
    if not len(docs) or lengths.min() == 0:
        raise ValueError(
            "There are no documents to pack."
            if not len(docs)
            else f"Document {lengths.argmin()} has no tokens: leave it out."
        )
    for i, (ids, mask) in enumerate(docs):
        if mask is not None and len(mask) != len(ids):
            raise ValueError(
                f"Document {i} has {len(ids)} ids but a loss mask of {len(mask)}."
            )
    total = int(lengths.sum())
    flat = np.fromiter(chain.from_iterable(ids for ids, _ in docs), np.int64, total)
    masks = ((True,) * len(ids) if mask is None else mask for ids, mask in docs)
    mask = np.fromiter(chain.from_iterable(masks), bool, total)
    return flat, mask, lengths


def _best_fit(lengths: list[int], seq_len: int) -> tuple[list, list, list]:
    """(row, first slot, number within the row) of each document, in turn.

    `open_rows[r]` lists the rows with r free slots, and bit r of `sizes` says that
    there are some: the tightest fit is the lowest bit at or above the length.
    """
    open_rows: list[list[int]] = [[] for _ in range(seq_len + 1)]
    sizes, n_in_row = 0, []
    rows, starts, numbers = [], [], []
    for length in lengths:
        fitting = sizes >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[free].pop()
            if not open_rows[free]:
                sizes ^= 1 << free
        else:
            free, row = seq_len, len(n_in_row)
            n_in_row.append(0)
        rows.append(row)
        starts.append(seq_len - free)
        numbers.append(n_in_row[row])
        n_in_row[row] += 1
        if free > length:
            open_rows[free - length].append(row)
            sizes |= 1 << (free - length)
    return rows, starts, numbers


def _lay_out(flat, mask, lengths, row, start, number, seq_len, pad_id) -> Rows:
    """Write each document's first `seq_len` tokens where it belongs."""
    within = np.arange(len(flat)) - np.repeat(lengths.cumsum() - lengths, lengths)
    fits = within < seq_len
    slot = (np.repeat(row * seq_len + start, lengths) + within)[fits]
    shape = (int(row.max()) + 1, seq_len)
    ids, doc_ids = np.full(shape, pad_id), np.full(shape, PADDING)
    loss_mask = np.zeros(shape, dtype=bool)
    ids.ravel()[slot] = flat[fits]
    doc_ids.ravel()[slot] = np.repeat(number, lengths)[fits]
    # Nothing comes before a document's first token, so nothing predicts it.
    loss_mask.ravel()[slot] = (mask & (within > 0))[fits]
    return Rows(
        ids=torch.from_numpy(ids),
        doc_ids=torch.from_numpy(doc_ids),
        loss_mask=torch.from_numpy(loss_mask),
        n_docs=len(lengths),
        n_cut=int((lengths > seq_len).sum()),
        tokens_cut=int((~fits).sum()),
    )
