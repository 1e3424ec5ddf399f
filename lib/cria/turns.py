"""Dialogues that a model goes on with turn by turn: what was said is read only once.

    talk = Turns(model, rows=8, columns=900)
    talk.read(questions)                # ids, one list a row
    tries = talk.sample(n=4, …)         # the dialogues stay where they are
    talk.read(chosen_and_next)          # the answer that counts, and what comes next

`cria.sampling` forgets a prompt's keys and values once it is answered: twenty turns
would be read ten times over.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cria.cache import KVCache
from cria.decoding import layer_weights, next_logits
from cria.model import Llama
from cria.sampling import draw, sampling_probs

__all__ = ["Turns"]


class Turns:
    """Rows of dialogue with one model, and the keys and values of all that was said.

    rows: how many dialogues. columns: room for what they read, pads included; every
    `read` takes as many columns as its longest row. What no row may outgrow is the
    model's max_seq_len, in tokens of its own.
    """

    def __init__(self, model: Llama, rows: int, columns: int):
        self.limit = model.config.max_seq_len
        # The same weights; only the width of the cache is another.
        self.model = copy.copy(model)
        self.model.config = replace(model.config, max_seq_len=columns)
        self.layers = layer_weights(model)
        self.cache = _TurnCache(
            self.model.config, rows, columns, model.output.weight.dtype
        )
        self.logits: Tensor | None = None  # (rows, V) of the next token

    def __len__(self) -> int:
        return len(self.cache.padding)

    @property
    def lengths(self) -> Tensor:
        """Tokens in each row so far, (rows,)."""
        return self.cache.length - self.cache.padding

    @torch.inference_mode()
    def read(self, ids: Sequence[Sequence[int]]) -> None:
        """Add ids to every row: one list a row, none of them empty."""
        if len(ids) != len(self) or not all(map(len, ids)):
            raise ValueError(
                f"read needs {len(self)} lists of ids, none of them empty."
            )
        T = max(map(len, ids))
        self._make_room(T, torch.tensor([len(x) for x in ids]))
        pads = torch.tensor([[True] * (T - len(x)) + [False] * len(x) for x in ids])
        block = torch.tensor([[0] * (T - len(x)) + list(x) for x in ids])
        self.cache.announce(pads)
        last = self.model(block, cache=self.cache, hidden=True)[:, -1]
        self.logits = self.model.output(last).float()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in that order."""
        index = torch.tensor(rows)
        self.cache.select(index)
        self.logits = self.logits[index]

    @torch.inference_mode()
    def sample(
        self,
        n: int,
        *,
        seeds: Sequence[int],
        eos_id: int,
        max_new_tokens: int,
        temperature: float = 1.0,
    ) -> list[list[list[int]]]:
        """``n`` ways to go on from every row, each with EOS if it was drawn.

        seeds: one a row and sample, row by row.  temperature 0 is greedy. Nothing is
        added to the dialogues: `read` what shall count.
        """
        rows = torch.arange(len(self)).repeat_interleave(n)
        if len(seeds) != len(rows):
            raise ValueError(f"sample got {len(seeds)} seeds for {len(rows)} samples.")
        self._make_room(0, torch.tensor(max_new_tokens))
        cache, logits = self.cache.fork(rows, max_new_tokens), self.logits[rows]
        uniform = _uniform(seeds, max_new_tokens)
        ids = torch.full((len(rows), max_new_tokens), eos_id)
        alive = torch.arange(len(rows))  # the sample that each row of the cache is
        going = torch.ones(len(rows), dtype=torch.bool)
        for t in range(max_new_tokens):
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                probs = sampling_probs(logits, temperature, 1.0)
                token = draw(probs, uniform[alive, t])
            ids[alive[going], t] = token[going]
            going = going & (token != eos_id)
            if not going.any() or t + 1 == max_new_tokens:
                break
            if going.sum() <= 0.75 * len(going):  # copying the cache costs
                cache.select(going.nonzero()[:, 0])
                alive, token, going = alive[going], token[going], going[going]
            logits = next_logits(self.model, self.layers, token, cache)
        found = [_until_eos(row, eos_id) for row in ids.tolist()]
        return [found[r * n : (r + 1) * n] for r in range(len(self))]

    def _make_room(self, columns: int, tokens: Tensor) -> None:
        longest = int((self.lengths + tokens).max())
        if longest > self.limit:
            raise ValueError(
                f"A dialogue would come to {longest} tokens, more than the model's "
                f"max_seq_len={self.limit}: ask for fewer turns."
            )
        if self.cache.length + columns > self.cache.max_len:
            raise ValueError(
                f"Side by side the dialogues take {self.cache.length + columns} "
                f"columns, but there is room for {self.cache.max_len}."
            )


class _TurnCache(KVCache):
    """A `KVCache` whose pads stand between the turns as well.

    Turns of unlike length are read side by side; a shorter one has pads on its left.
    ``pads`` (B, max_len) says where; ``padding`` counts them, so that a token's
    position is, as before, its column less the pads in front of it.
    """

    def __init__(self, config, rows: int, max_len: int, dtype: torch.dtype):
        super().__init__(config, torch.zeros(rows, dtype=torch.long), max_len, dtype)
        self.pads = torch.zeros(rows, max_len, dtype=torch.bool)

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.pads = self.pads[rows]

    def announce(self, pads: Tensor) -> None:
        """What comes next: pads (B, T), True where a row has nothing to read."""
        columns = slice(self.length, self.length + pads.shape[1])
        self.pads[:, columns] = pads
        self.padding = self.padding + pads.sum(1)
        every_head = pads.repeat_interleave(len(self.bias) // len(pads), 0)[:, None]
        self.bias[:, :, columns].masked_fill_(every_head, -math.inf)

    def positions_and_blocked(self, T: int) -> tuple[Tensor, Tensor]:
        columns = torch.arange(self.length + T)
        new = columns[self.length :]
        blocked = (columns > new[:, None]) | self.pads[:, None, : self.length + T]
        # A pad sees itself, so that no row of the softmax is empty.
        blocked = blocked & (columns != new[:, None])
        return (new - self.padding[:, None]).clamp_min(0), blocked

    def fork(self, rows: Tensor, room: int) -> _TurnCache:
        """A copy of ``rows`` (one may be named many times), ``room`` columns wider."""
        L, other = self.length, copy.copy(self)
        other.max_len = L + room
        other.padding = self.padding[rows]
        other.pads = torch.zeros(len(rows), L + room, dtype=torch.bool)
        other.pads[:, :L] = self.pads[rows, :L]
        layers, two, _, K, _, E = self.kv.shape
        other.kv = self.kv.new_zeros(layers, two, len(rows), K, L + room, E)
        other.kv[..., :L, :] = self.kv[:, :, rows, :, :L]
        bias = self.bias.unflatten(0, (-1, K))[rows].flatten(0, 1)
        other.bias = bias.new_zeros(len(bias), 1, L + room)
        other.bias[..., :L] = bias[..., :L]
        return other


def _uniform(seeds: Sequence[int], steps: int) -> Tensor:
    """(len(seeds), steps) numbers, each row from a generator of its own."""
    return torch.stack(
        [
            torch.rand(steps, generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
    )


def _until_eos(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids
