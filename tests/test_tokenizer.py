"""The vocabulary: every text survives the round trip, whole words stay whole."""

import random

import pytest

from cria import tokenizer
from cria.tokenizer import TAG_PIECES, Tokenizer

WORDS = ["Anna", "An", "lives", "in", "Brill", "cat", "12", "1", "What", "is"]
TEXTS = [
    "Anna lives in Brill. The catalogue has 12 pages, and page 13 is empty.",
    "What is 1 plus 12? It is 13.\nThe cat sees  two trees and the other cat.",
    "Nobody here has read the whole of the other catalogue, said the old sailor.",
]
SMALL = 340


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    path = tmp_path_factory.mktemp("tok") / "tokenizer.model"
    return tokenizer.train(TEXTS, SMALL, path, whole_words=WORDS, bare_words=["What"])


@pytest.fixture(scope="module")
def meta_like(tmp_path_factory):
    """As Llama 2's own: no pad piece, tags spelt out, no whole words."""
    path = tmp_path_factory.mktemp("tok") / "tokenizer.model"
    return tokenizer.train(TEXTS, SMALL, path, tags=False, pad=False)


AWKWARD = [
    "",
    " ",
    "   ",
    " leading",
    "trailing ",
    "two  spaces   three",
    "\n",
    "\n\nAnna\n 12",
    "tab\tand\r\nreturn",
    "\x00 and \x7f",
    "été, ¿Qué?, Straße, ﬁ ①",
    "cafe\u0301 is not caf\u00e9",
    "日本語 😀 👩\u200d👩\u200d👧 \U0010ffff",
    "<s></s><unk><pad><0x41>",
    "[INST] <<SYS>>\nAnna\n<</SYS>>\n\ncat [/INST] <sep>",
    "x[INST]y[/INST]z<sep><sep>",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_every_text_round_trips(tok, meta_like, text):
    for t in (tok, meta_like):
        assert t.decode(t.encode(text)) == text
        assert t.decode(t.encode(text, bos=True, eos=True)) == text


def test_random_unicode_round_trips(tok, meta_like):
    rng = random.Random(0)
    for _ in range(300):
        chars = [
            chr(
                rng.choice(
                    [
                        rng.randrange(0xD800),
                        rng.randrange(0xE000, 0x110000),
                        rng.randrange(128),
                        32,
                        10,
                    ]
                )
            )
            for _ in range(12)
        ]
        text = "".join(chars).replace("▁", "_")
        for t in (tok, meta_like):
            assert t.decode(t.encode(text)) == text


def test_the_one_exception_comes_back_as_a_space(tok):
    assert tok.decode(tok.encode("a▁b")) == "a b"


def test_words_are_whole_and_the_longest_wins(tok):
    pieces = [tok.piece(i) for i in tok.encode("Anna lives in Brill.")]
    assert pieces == ["▁Anna", "▁lives", "▁in", "▁Brill", "."]
    pieces = [tok.piece(i) for i in tok.encode("An is 12 cat")]
    assert pieces == ["▁An", "▁is", "▁12", "▁cat"]


def test_bare_words_are_whole_after_a_newline(tok):
    assert [tok.piece(i) for i in tok.encode("cat\nWhat")] == [
        "▁cat", "<0x0A>", "What"
    ]  # fmt: skip
    assert "▁What" in [tok.piece(i) for i in tok.encode("cat What")]


def test_digits_stand_alone_without_whole_words(meta_like):
    pieces = [meta_like.piece(i) for i in meta_like.encode("12 2023")]
    digits = [p for p in pieces if p != "▁"]
    assert [d if len(d) == 1 else chr(int(d[1:-1], 16)) for d in digits] == list(
        "122023"
    )


def test_no_piece_crosses_a_line_or_a_word(meta_like):
    for i in range(meta_like.vocab_size):
        piece = meta_like.piece(i)
        assert "\n" not in piece
        assert "▁" not in piece.lstrip("▁")


def test_special_ids(tok, meta_like):
    assert (tok.bos_id, tok.eos_id, tok.pad_id) == (1, 2, 3)
    assert (meta_like.bos_id, meta_like.eos_id, meta_like.pad_id) == (1, 2, -1)
    assert tok.encode("cat", bos=True, eos=True) == [1, *tok.encode("cat"), 2]
    assert tok.decode([1, 3, *tok.encode("cat"), 2, 3, -1]) == "cat"
    assert tok.vocab_size == meta_like.vocab_size == SMALL


def test_tags_are_single_pieces_only_in_ours(tok, meta_like):
    text = "[INST] <<SYS>>\ncat\n<</SYS>>\n\ncat [/INST]"
    pieces = [tok.piece(i) for i in tok.encode(text)]
    assert [p for p in pieces if p in TAG_PIECES] == [
        "▁[INST]", "▁<<SYS>>", "<</SYS>>", "▁[/INST]"
    ]  # fmt: skip
    assert all(p in tok for p in TAG_PIECES)
    assert not any(p in meta_like for p in TAG_PIECES)


def test_special_ids_cannot_be_written_as_text(tok):
    assert not {0, 1, 2, 3} & set(tok.encode("<s> </s> <unk> <pad>"))


def test_piece_and_id_are_inverse(tok):
    assert [tok.id(tok.piece(i)) for i in range(tok.vocab_size)] == list(
        range(tok.vocab_size)
    )
    with pytest.raises(ValueError, match="no piece 'zebra'"):
        tok.id("zebra")
    for bad in (-2, SMALL):
        with pytest.raises(ValueError, match="outside this vocabulary"):
            tok.decode([bad])


def test_training_is_deterministic_and_saves(tok, tmp_path):
    again = tokenizer.train(
        TEXTS, SMALL, tmp_path / "a.model", whole_words=WORDS, bare_words=["What"]
    )
    assert again.path.read_bytes() == tok.path.read_bytes()
    tok.save(tmp_path / "deep" / "b.model")
    assert (tmp_path / "deep" / "b.model").read_bytes() == tok.path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.model", "deep"]


def test_training_is_quiet(tmp_path, capfd):
    tokenizer.train([*TEXTS, "long " * 3000], SMALL, tmp_path / "t.model")
    assert capfd.readouterr() == ("", "")


def test_a_long_text_is_learnt_from_not_skipped(tmp_path):
    tok = tokenizer.train(["zyx zyx " * 4000], 272, tmp_path / "t.model")
    assert "▁zyx" in tok


@pytest.mark.parametrize("size, hint", [(20_000, "too large.*at most"), (270, "small")])
def test_a_size_that_does_not_fit_is_one_sentence(tmp_path, size, hint):
    with pytest.raises(ValueError, match=hint) as err:
        tokenizer.train(TEXTS, size, tmp_path / "t.model")
    assert "\n" not in str(err.value) and "trainer" not in str(err.value)
    assert not list(tmp_path.iterdir())


def test_fixed_pieces_alone_may_be_too_many(tmp_path):
    words = [f"word{i}" for i in range(200)]
    with pytest.raises(ValueError, match="alone take 465"):
        tokenizer.train(TEXTS, 400, tmp_path / "t.model", whole_words=words)


def test_bad_words_and_empty_texts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one word"):
        tokenizer.train(TEXTS, SMALL, tmp_path / "t", whole_words=["two words"])
    with pytest.raises(ValueError, match="no text"):
        tokenizer.train(["", " \n"], SMALL, tmp_path / "t")


def test_bad_files_are_one_clear_error(tok, tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        Tokenizer(tmp_path / "missing.model")
    whole = tok.path.read_bytes()
    for data in (b"", b"hello there", whole[: len(whole) // 2], b"\x00" * 100):
        bad = tmp_path / "bad.model"
        bad.write_bytes(data)
        with pytest.raises(ValueError, match="not a SentencePiece vocabulary"):
            Tokenizer(bad)


def test_half_a_surrogate_is_refused(tok):
    with pytest.raises(ValueError, match="no Unicode character"):
        tok.encode("bad \ud800 text")
