"""Text to ids and back: SentencePiece BPE with Llama 2's settings.

Llama 2 (section 2.2) uses a byte-pair vocabulary of 32,000 pieces: every digit
stands alone, unknown characters fall back to bytes, and the text is not
normalised. `train` makes small vocabularies the same way; `Tokenizer` reads them
and the original `tokenizer.model` alike.

SentencePiece writes a space as "▁" (U+2581) and puts one in front of every text,
so that a word looks the same at the start of a text and inside it. `decode` takes
that one space away again. Therefore

- `decode(encode(text)) == text` for every text, newlines, runs of spaces and a
  leading space included. The one exception is the character "▁" itself, which
  comes back as a space;
- `encode(a) + encode(b)` is not `encode(a + b)`: the second text brings a space of
  its own. This is why `cria.chat` encodes each pair of turns in one piece.
"""

import io
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

SPACE = "▁"  # how SentencePiece writes a space inside a piece
TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<sep>")
# In the dialogue layout a space stands before three of the tags, so those pieces
# carry it: "▁[INST]" is one id, where "▁" + "[INST]" would be two in every turn.
TAG_PIECES = ("▁[INST]", "▁[/INST]", "▁<<SYS>>", "<</SYS>>", "<sep>")


class Tokenizer:
    """A SentencePiece vocabulary read from a `.model` file.

    Attributes: `vocab_size`; `bos_id` and `eos_id` (1 and 2 in Llama 2 and here);
    `pad_id`, never equal to `eos_id`, and −1 where the vocabulary has no pad piece,
    as in Llama 2: there a padding mask must say what is padding.

    Raises FileNotFoundError for a missing file, ValueError for a file that is not a
    SentencePiece vocabulary or has no pieces for begin and end of text.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"There is no tokenizer file at {self.path}; "
                "give the path of a SentencePiece .model file."
            )
        try:
            self._sp = sentencepiece.SentencePieceProcessor(
                model_proto=self.path.read_bytes()
            )
            size = self._sp.get_piece_size()
        except (RuntimeError, ValueError) as err:
            raise ValueError(_not_ours(self.path)) from err
        if size == 0:
            raise ValueError(_not_ours(self.path))
        self.vocab_size: int = size
        self.bos_id: int = self._sp.bos_id()
        self.eos_id: int = self._sp.eos_id()
        self.pad_id: int = self._sp.pad_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise ValueError(
                f"{self.path} has no piece for the begin or the end of a text "
                "(<s>, </s>), which Llama needs; train a vocabulary with both."
            )

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of `text`, with BOS in front or EOS behind on request.

        "<s>" or "</s>" written inside `text` are ordinary characters.
        """
        try:
            ids = self._sp.encode(text.encode())
        except UnicodeEncodeError as err:  # half of a surrogate pair
            raise ValueError(
                f"The text holds {text[err.start]!r}, which is no Unicode character; "
                "remove it before encoding."
            ) from err
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; BOS, EOS and padding (−1 too) leave no trace.

        Bytes that are not valid UTF-8 become U+FFFD. Ids outside the vocabulary
        raise ValueError.
        """
        ids = [int(i) for i in ids if i != -1]
        for i in ids:
            self._check(i)
        return self._sp.decode(ids)

    def piece(self, id: int) -> str:
        """The piece behind an id, a leading space written as "▁"."""
        self._check(id)
        return self._sp.id_to_piece(int(id))

    def id(self, piece: str) -> int:
        """The id of a piece; ValueError if the vocabulary does not have it."""
        if piece not in self:
            raise ValueError(f"The vocabulary {self.path} has no piece {piece!r}.")
        return self._sp.piece_to_id(piece)

    def __contains__(self, piece: str) -> bool:
        # SentencePiece answers "unknown" for a missing piece: look there and back.
        return self._sp.id_to_piece(self._sp.piece_to_id(piece)) == piece

    def save(self, path: str | os.PathLike) -> None:
        """Write the same vocabulary to `path`."""
        _write(Path(path), self._sp.serialized_model_proto())

    def _check(self, id: int) -> None:
        if not 0 <= id < self.vocab_size:
            raise ValueError(
                f"Id {id} is outside this vocabulary of {self.vocab_size} pieces; "
                "were these ids made with another tokenizer?"
            )


def train(
    texts: Iterable[str],
    vocab_size: int,
    path: str | os.PathLike,
    whole_words: Sequence[str] = (),
    bare_words: Sequence[str] = (),
    tags: bool = True,
    pad: bool = True,
    character_coverage: float = 0.9995,
) -> Tokenizer:
    """Learn a vocabulary of exactly `vocab_size` pieces and write it to `path`.

    The ids: 0 unknown, 1 BOS, 2 EOS, 3 pad, then the chat tags, the whole words, the
    256 bytes, and what byte-pair merging finds in `texts`. There is no randomness:
    the same arguments give the same file. As in Llama 2 no piece crosses a line, so
    a newline is the byte piece <0x0A>.

    whole_words: words, names and numbers that shall be one piece each wherever they
        follow a space or start a text: "Anna" becomes the piece "▁Anna". The longest
        one that matches wins ("▁Anna" before "▁An"), and a longer word that merely
        begins with one is cut there ("▁cat" + "alogue"; "▁12" + "3").
    bare_words: words that shall be one piece with no space before them too, such as
        those that open a line after a system block or follow a quotation mark. They
        match inside longer words as well: keep this list short.
    tags: make the five chat tags single pieces (Llama 2 spells them as plain text).
    pad: have a pad piece (Llama 2 has none).
    character_coverage: the share of the text's characters that become pieces; the
        rarest of the others fall back to bytes.

    Raises ValueError when `vocab_size` is too small or too large for the texts.
    """
    symbols = list(TAG_PIECES) if tags else []
    symbols += [SPACE + _word(w) for w in whole_words] + [_word(w) for w in bare_words]
    symbols = list(dict.fromkeys(symbols))
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError("The tokenizer got no text to learn from.")
    fixed = 3 + pad + len(symbols) + 256
    if vocab_size <= fixed:
        raise ValueError(
            f"A vocabulary of {vocab_size} is too small: bytes, control pieces, tags "
            f"and whole words alone take {fixed}; ask for more."
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=character_coverage,
            user_defined_symbols=symbols,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3 if pad else -1,
            max_sentence_length=max(len(line.encode()) for line in lines) + 1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as err:
        raise ValueError(_size_error(vocab_size, str(err))) from err
    _write(Path(path), model.getvalue())
    return Tokenizer(path)


def _word(word: str) -> str:
    word = word.removeprefix(SPACE)
    if not word or SPACE in word or word.split() != [word]:
        raise ValueError(
            f"A whole word must be one word without spaces, but got {word!r}."
        )
    return word


def _size_error(vocab_size: int, message: str) -> str:
    if found := re.search(r"too high.*<= (\d+)", message, re.S):
        return (
            f"A vocabulary of {vocab_size} is too large for this text, which yields "
            f"{found[1]} pieces at most; ask for fewer or give more text."
        )
    if found := re.search(r"smaller than required_chars.*?(\d+) vs (\d+)", message):
        return (
            f"A vocabulary of {vocab_size} is too small: the characters of this text "
            f"alone take {found[2]}; ask for more or lower character_coverage."
        )
    return f"SentencePiece could not learn a vocabulary: {message.strip()}"


def _not_ours(path: Path) -> str:
    return (
        f"{path} is not a SentencePiece vocabulary, or it is damaged; give a .model "
        "file made by cria.tokenizer.train or Llama 2's own tokenizer.model."
    )


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temp = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temp, 0o644)  # mkstemp's 0600 would hide the file from others
        os.replace(temp, path)
    except BaseException:
        os.unlink(temp)
        raise
