"""How to talk to a checkpoint: in dialogue or in plain text, and by which vocabulary.

Ours follow the config. Of others, only Llama 2's chat format is spoken: a model that
was tuned on another one would answer, but not as it was trained to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cria import checkpoints, stage_cache
from cria.checkpoint_files import read_json
from cria.tokenizer import Tokenizer

Way = Literal["chat", "text"]


@dataclass(frozen=True)
class Manner:
    """plain: it continues text, no dialogue.  separator: see `cria.chat`.
    why: one clause for people."""

    plain: bool
    separator: bool
    why: str


def manner(folder: Path, separator: bool, wish: Way | None = None) -> Manner:
    """How the model in ``folder`` wants to be spoken to.

    separator: what a checkpoint of our own uses; the released format has none.
    wish: the user's word, which goes before what the folder says.
    Raises ValueError for a folder with another chat format, unless there is a wish.
    """
    if _ours(folder):
        plain = _stage(folder) == "base" if wish is None else wish == "text"
        return Manner(plain, separator and not plain, "as Cria trained it")
    if wish is not None:
        return Manner(wish == "text", False, "as you asked for")
    if template := _template(folder):
        if "[INST]" in template and "<<SYS>>" in template:
            return Manner(False, False, "its chat template is Llama 2's")
        raise ValueError(
            f"{folder} has a chat template that is not Llama 2's, and Cria speaks no "
            "other; --format text continues your text, --format chat tries Llama 2's."
        )
    if "chat" in folder.resolve().name.lower():
        return Manner(False, False, "it has chat in its name")
    return Manner(True, False, "no chat template, no chat in its name: a base model")


def vocabulary(folder: Path) -> Tokenizer:
    """Its tokenizer.model: in the folder, or beside it as Meta's download lays it.

    Raises FileNotFoundError if there is none.
    """
    for place in (folder, folder.resolve().parent):
        if (place / "tokenizer.model").is_file():
            return Tokenizer(place / "tokenizer.model")
    raise FileNotFoundError(
        f"{folder} has no tokenizer.model, and there is none beside it; copy it there "
        "from the place the weights came from (tokenizer.json alone is not read)."
    )


def _ours(folder: Path) -> bool:
    file = folder / "config.json"
    return file.is_file() and read_json(file).get("format") == checkpoints.FORMAT


def _stage(folder: Path) -> str | None:
    """The stage that made a checkpoint of ours, where it still lies in the cache."""
    try:
        seal = (folder.resolve().parent / stage_cache.SEAL).read_text("utf-8")
        return json.loads(seal).get("stage")
    except (OSError, ValueError):
        return None


def _template(folder: Path) -> str:
    """The chat template of a Hugging Face folder; empty if there is none."""
    jinja, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if jinja.is_file():
        return jinja.read_text("utf-8")
    if not settings.is_file():
        return ""
    found = read_json(settings).get("chat_template") or ""
    return found if isinstance(found, str) else json.dumps(found)  # several, by name
