"""Real English: 2018's small talk between students, from the chitchat-dataset package.

The tiny world is written by templates; the tokenizer and the scaling curves (the
paper's Fig. 5) deserve text that people wrote. The package holds 7,168 chats under
the MIT licence. Senders and times are dropped here, and so is every utterance with
an e-mail or web address, a handle or a telephone number (or another number of seven
digits): nobody's contact belongs in a language model. What remains are 4,012 chats,
12.1 million characters.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path

_CONTACT = re.compile(
    r"""  \S@\S                         # e-mail addresses
        | (?<!\w)@\w                    # handles
        | https?: | \bwww\.             # web addresses,
        | \b[\w-]+\.(?:com|org|net|edu|gov|io|games|me|tv)\b   # without http too
        | (?:\d[ ().+-]*){7,}           # telephone and other long numbers
    """,
    re.VERBOSE | re.IGNORECASE,
)


def chats(limit: int | None = None) -> list[str]:
    """The chats as plain text, one turn a line, in the data set's own order.

    A turn is what one person said before the other answered. Chats of fewer than two
    turns and repeats of an earlier chat are left out. `limit` keeps the first ones.
    Raises FileNotFoundError if the package is not installed.
    """
    found: dict[str, None] = {}
    for conversation in json.loads(_file().read_text(encoding="utf-8")).values():
        if limit is not None and len(found) >= limit:
            break
        turns = [_turn(message) for message in conversation["messages"]]
        turns = [turn for turn in turns if turn]
        if len(turns) >= 2:
            found["\n".join(turns)] = None
    return list(found)


def split(
    texts: Iterable[str], validation: float = 0.05
) -> tuple[list[str], list[str]]:
    """(train, validation) by whole text, about a share of `validation` held out.

    The text itself decides its side: a text is never on both, and it stays where it
    is when others come or go.
    """
    if not 0 < validation < 1:
        raise ValueError(
            f"The validation share must lie between 0 and 1, but is {validation}."
        )
    sides: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        digest = hashlib.sha256(text.encode()).digest()
        held_out = int.from_bytes(digest[:8], "big") < validation * 2**64
        sides[held_out].append(text)
    return sides


def _turn(message: list[dict]) -> str:
    lines = (" ".join(utterance["text"].split()) for utterance in message)
    return " ".join(line for line in lines if line and not _CONTACT.search(line))


def _file() -> Path:
    # Found without importing it: we need its data file, not its code.
    spec = importlib.util.find_spec("chitchat_dataset")
    path = Path(spec.origin).parent / "dataset.json" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            "The real chats come with the package chitchat-dataset, which is not "
            "installed; run `pip install chitchat-dataset`."
        )
    return path
