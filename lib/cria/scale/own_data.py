"""Data of one's own, where the tiny world's are not what is to be learnt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

__all__ = ["jsonl", "token_file"]


def token_file(path: Path, vocab_size: int) -> np.ndarray:
    """Token ids (rows, seq_len) in a .npy file, mapped, not read."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no .npy file of token ids: {error}") from error
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(
            f"{path} holds {rows.dtype} {rows.shape}; it should hold whole numbers, "
            "(rows, seq_len)."
        )
    if len(rows) and not 0 <= int(rows[0].min()) <= int(rows[0].max()) < vocab_size:
        raise ValueError(f"{path} holds ids outside a vocabulary of {vocab_size}.")
    return rows


def jsonl(path: Path, key: str) -> list[dict]:
    """The lines of a .jsonl file, each an object with ``key``."""
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            found.append(json.loads(line))
            found[-1][key]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with {key!r}."
            ) from error
    return found
