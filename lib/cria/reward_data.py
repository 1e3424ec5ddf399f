"""What a reward model reads (paper §3.2.2): the data mixes, and pairs as batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cria import chat
from cria.branching import branched
from cria.config import RewardConfig
from cria.preferences import Comparison, load
from cria.reward import margins
from cria.tokenizer import Tokenizer

__all__ = ["Pairs", "answer_ids", "batches", "comparisons", "encode"]
__all__ += ["helpfulness_mix", "mixes", "safety_mix"]

POOL = 16  # batches that are sorted by length together


@dataclass(frozen=True)
class Pairs:
    """Comparisons as ids: one row each, (prompt, (chosen, rejected))."""

    rows: list[tuple[list[int], tuple[list[int], list[int]]]]
    margin: Tensor  # (N,)
    safe: Tensor  # (N, 2): 1 safe, 0 unsafe, −1 not labelled

    def __len__(self) -> int:
        return len(self.rows)


def answer_ids(
    vocabulary: Tokenizer,
    messages: Sequence[Mapping[str, str]],
    text: str,
    ended: bool = True,
) -> list[int]:
    """The ids of an answer; with EOS if it ``ended`` by itself.

    The space before EOS belongs to the end, as `cria.chat` lays it out.
    """
    turns = [*messages, {"role": "assistant", "content": text}]
    ids = chat.encode_dialog(vocabulary, turns)[0]
    ids = ids[len(chat.prompt_ids(vocabulary, messages)) :]
    return ids if ended else ids[:-2]


def encode(
    vocabulary: Tokenizer,
    comparisons: Sequence[Comparison],
    margin: Sequence[float] = (0, 0, 0, 0),
    max_len: int | None = None,
) -> Pairs:
    """Comparisons as ids, with the margins of ``margin`` (one a grade, best first).

    max_len: leave out pairs whose row (prompt and both answers) would be longer.
    """
    kept, rows = [], []
    for c in comparisons:
        prompt = chat.prompt_ids(vocabulary, c.messages)
        both = tuple(
            answer_ids(vocabulary, c.messages, text, ended)
            for text, ended in zip(c.answers, c.ended, strict=True)
        )
        if max_len is None or len(prompt) + sum(map(len, both)) <= max_len:
            kept.append(c)
            rows.append((prompt, both))
    safe = [[-1, -1] if c.safe is None else list(map(int, c.safe)) for c in kept]
    return Pairs(
        rows,
        margins([c.grade for c in kept], margin),
        torch.tensor(safe).view(-1, 2),
    )


def batches(pairs: Pairs, batch_size: int, seed: int) -> Callable[[int], dict]:
    """A function step → {"ids", "branches", "margin", "safe"} of ``batch_size`` pairs.

    Pairs of like length share a batch, so that little is padding: each epoch's random
    order is cut into pools, a pool is sorted by length and cut into batches, and those
    are shuffled again. It depends on nothing but (pairs, seed, step).
    """
    if not 1 <= batch_size <= len(pairs):
        raise ValueError(
            f"batch_size is {batch_size}, but there are {len(pairs)} pairs: it must be "
            "at least 1 and no more than there are."
        )
    size = np.array([len(p) + len(a) + len(b) for p, (a, b) in pairs.rows])
    per_epoch = len(pairs) // batch_size  # the few left over change every epoch

    @lru_cache(maxsize=1)
    def order(epoch: int) -> np.ndarray:
        rng = np.random.default_rng((seed, epoch))
        shuffled = rng.permutation(len(pairs))[: per_epoch * batch_size]
        pools = [
            pool[np.argsort(size[pool], kind="stable")]
            for pool in np.split(shuffled, range(0, len(shuffled), POOL * batch_size))
        ]
        return rng.permutation(np.concatenate(pools).reshape(per_epoch, batch_size))

    def batch(step: int) -> dict[str, Tensor]:
        index = order(step // per_epoch)[step % per_epoch]
        rows = branched([pairs.rows[i] for i in index])
        return {
            "ids": rows.ids,
            "branches": rows.branches,
            "margin": pairs.margin[index],
            "safe": pairs.safe[index],
        }

    return batch


def helpfulness_mix(
    helpful: Sequence[Comparison],
    safety: Sequence[Comparison],
    others: Sequence[Comparison],
    share: float,
    seed: int,
) -> list[Comparison]:
    """All of ``helpful``, and ``share`` of the whole from the other two (§3.2.2).

    The paper's share is one half, drawn uniformly from the safety and the open-source
    comparisons. Where these are fewer, all of them are taken.
    """
    return _mix(helpful, [*safety, *others], share, seed)


def safety_mix(
    safety: Sequence[Comparison],
    helpful: Sequence[Comparison],
    share: float,
    seed: int,
) -> list[Comparison]:
    """All of ``safety``, and ``share`` of the whole from ``helpful`` (§3.2.2: 10 %).

    The paper: the helpful tenth helps where both answers are safe.
    """
    return _mix(safety, helpful, share, seed)


def _mix(all_of, some_of, share: float, seed: int) -> list[Comparison]:
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; it must be 0 or more and below 1.")
    n = min(len(some_of), round(len(all_of) * share / (1 - share)))
    rng = np.random.default_rng(seed)
    mixed = [*all_of, *(some_of[i] for i in rng.choice(len(some_of), n, False))]
    return [mixed[i] for i in rng.permutation(len(mixed))]


def mixes(
    found: Mapping[str, Mapping[str, Sequence[Comparison]]],
    config: RewardConfig,
    seed: int,
) -> dict[str, list[Comparison]]:
    """What the two reward models read: ground → comparisons, in order.

    found: what `comparisons` gives. Open-source pairs of safety count as safety data
    (the paper's Anthropic Harmless), and are among the others of the helpfulness RM.
    """
    own, others = found["train"], found["open"]
    safety = [*own["safety"], *others["safety"]]
    return {
        "helpfulness": helpfulness_mix(
            own["helpfulness"],
            own["safety"],
            [*others["helpfulness"], *others["safety"]],
            config.helpfulness_other_share,
            seed,
        ),
        "safety": safety_mix(
            safety, own["helpfulness"], config.safety_helpfulness_share, seed
        ),
    }


def comparisons(folder: Path) -> dict[str, dict[str, list[Comparison]]]:
    """What the stage `preferences` holds: train, open, test → ground → comparisons."""
    found: dict[str, dict[str, list[Comparison]]] = {}
    for name in ("train", "open", "test"):
        found[name] = {"helpfulness": [], "safety": []}
        for comparison in load(folder / f"{name}.jsonl").comparisons:
            found[name][comparison.ground].append(comparison)
    return found
