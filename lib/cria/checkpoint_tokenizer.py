"""A SentencePiece vocabulary said in Hugging Face's words: `tokenizer.json`.

transformers and vLLM read the vocabulary from this file. It gives the same ids as
`cria.tokenizer` for ordinary text; only there, "<s>" and "</s>" inside a text become
the special pieces, which is how Hugging Face's chat templates work.
"""

import re

from cria.tokenizer import SPACE, Tokenizer

# One pair is `<s>[INST] {user} [/INST] {answer} </s>` (see cria.chat). Roles are
# checked, because a wrong order would silently give a layout nobody trained on.
CHAT_TEMPLATE = """\
{%- set ns = namespace(system=none, expected='user') -%}
{%- for m in messages -%}
{%- if loop.first and m['role'] == 'system' -%}
{%- set ns.system = m['content'] -%}
{%- elif m['role'] != ns.expected -%}
{{- raise_exception('user and assistant must alternate, the user first') -}}
{%- elif m['role'] == 'user' -%}
{%- set text = m['content'] -%}
{%- if ns.system is not none -%}
{%- set text = '<<SYS>>\\n' + ns.system + '\\n<</SYS>>\\n\\n' + text -%}
{%- set ns.system = none -%}
{%- endif -%}
{%- set ns.expected = 'assistant' -%}
{{- bos_token + '[INST] ' + text.strip() + ' [/INST]' -}}
{%- else -%}
{%- set ns.expected = 'user' -%}
{{- ' ' + m['content'].strip() + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}"""


def tokenizer_files(tokenizer: Tokenizer, max_length: int) -> dict[str, dict]:
    """The contents of `tokenizer.json` and `tokenizer_config.json`, by file name."""
    control = [
        i for i in (0, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) if i >= 0
    ]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokenizer.piece(0),
        "bos_token": tokenizer.piece(tokenizer.bos_id),
        "eos_token": tokenizer.piece(tokenizer.eos_id),
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    if tokenizer.pad_id >= 0:
        config["pad_token"] = tokenizer.piece(tokenizer.pad_id)
    symbols = _symbols(tokenizer, control)
    bos = tokenizer.piece(tokenizer.bos_id)
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(tokenizer, i) for i in control],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": _split(symbols),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_one(bos), _text("A")],
            "pair": [_one(bos), _text("A"), _one(bos), _text("B")],
            "special_tokens": {
                bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}
            },
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokenizer.piece(0),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": bool(symbols),  # a whole word is looked up as it is
            "vocab": {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)},
            "merges": _merges(tokenizer),
        },
    }  # fmt: skip
    return {"tokenizer.json": whole, "tokenizer_config.json": config}


def _symbols(tokenizer: Tokenizer, control: list[int]) -> list[str]:
    """The whole words and tags: SentencePiece puts them before the bytes."""
    before = range(tokenizer.id("<0x00>"))
    return [tokenizer.piece(i) for i in before if i not in control]


def _split(symbols: list[str]) -> dict | None:
    """Cut the text at the whole words, the longest that matches first."""
    if not symbols:
        return None
    longest_first = sorted(symbols, key=len, reverse=True)
    return {
        "type": "Split",
        "pattern": {"Regex": "|".join(map(re.escape, longest_first))},
        "behavior": "Isolated",
        "invert": False,
    }


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    """Every way to join two pieces into a third, the earliest learnt piece first.

    SentencePiece keeps the learnt pieces in the order of their merges; single
    characters come after them and are no merge.
    """
    learnt = range(tokenizer.id("<0xFF>") + 1, tokenizer.vocab_size)
    known = {tokenizer.piece(i) for i in learnt}
    merges = []
    for i in learnt:
        piece = tokenizer.piece(i)
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in known and right in known:
                merges.append([left, right])
    return merges


def _special(tokenizer: Tokenizer, id: int) -> dict:
    return {
        "id": id,
        "content": tokenizer.piece(id),
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _one(token: str) -> dict:
    return {"SpecialToken": {"id": token, "type_id": 0}}


def _text(name: str) -> dict:
    return {"Sequence": {"id": name, "type_id": 0}}
