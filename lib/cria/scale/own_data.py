"""Data of one's own, where the tiny world's are not what is to be learnt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cria import chat
from cria.packing import Document
from cria.tokenizer import Tokenizer

__all__ = ["check_ids", "dialogues", "jsonl", "token_file"]


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
    if rows.shape[1] < 2:
        raise ValueError(
            f"{path} has rows of {rows.shape[1]} tokens: there is nothing to foretell; "
            "give rows of 2 or more."
        )
    check_ids(rows[:1], vocab_size, str(path))
    return rows


def check_ids(rows: np.ndarray, vocab_size: int, where: str) -> None:
    """ValueError if an id of ``rows`` is no row of the embeddings.

    A file of terabytes is not read beforehand, so each batch is looked at in its turn.
    """
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < vocab_size:
        raise ValueError(
            f"{where} holds ids outside a vocabulary of {vocab_size}: they come from "
            "another tokenizer."
        )


def dialogues(path: Path, vocabulary: Tokenizer, separator: bool) -> list[Document]:
    """The dialogues of a .jsonl file, encoded; the errors name their line."""
    docs = []
    for number, line in jsonl(path, "messages"):
        messages = line["messages"]
        try:
            if not isinstance(messages, list) or not all(
                isinstance(m, dict) for m in messages
            ):
                raise ValueError('"messages" should be a list of objects.')
            docs.append(chat.encode_dialog(vocabulary, messages, separator))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return docs


def jsonl(path: Path, key: str) -> list[tuple[int, dict]]:
    """(number, content) of the lines of a .jsonl file, each an object with ``key``.

    Empty lines are passed over.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text file: {error}.") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append((number, json.loads(line)))
            found[-1][1][key]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with {key!r}."
            ) from error
    return found
