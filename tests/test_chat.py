"""The dialogue layout: Meta's exact ids, and a loss on answers only."""

import pytest
import sentencepiece

from cria import tokenizer
from cria.chat import encode_dialog, prompt_ids

TEXTS = [
    "[INST] Where does Anna live? [/INST] Anna lives in Brill. Have a nice day!",
    "You are a kind helper. Always answer in French. What is 2 plus 2? It is 4.",
]


@pytest.fixture(scope="module", params=["ours", "llama2"])
def tok(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tok") / "tokenizer.model"
    ours = request.param == "ours"
    words = ["Anna", "Brill"] if ours else []
    return tokenizer.train(TEXTS, 330, path, words, tags=ours, pad=ours)


def u(text):
    return {"role": "user", "content": text}


def a(text):
    return {"role": "assistant", "content": text}


def s(text):
    return {"role": "system", "content": text}


def answers(tok, ids, mask):
    """The supervised runs of a dialogue, decoded."""
    runs, run = [], []
    for i, m in zip([*ids, -1], [*mask, False], strict=True):
        if m:
            run.append(i)
        elif run:
            runs.append(run)
            run = []
    assert all(r.count(tok.eos_id) == 1 and r[-1] == tok.eos_id for r in runs)
    return [tok.decode(r) for r in runs]


def reference(tok, pairs, last=None):
    """The layout said once more, with SentencePiece itself and nothing else."""
    sp = sentencepiece.SentencePieceProcessor(model_file=str(tok.path))
    ids = []
    for user, answer in pairs:
        ids += [1, *sp.encode("[INST] " + user + " [/INST] " + answer + " "), 2]
    if last is not None:
        ids += [1, *sp.encode("[INST] " + last + " [/INST]")]
    return ids


DIALOGS = {
    "one": [u("Where does Anna live?"), a("Anna lives in Brill.")],
    "spaces": [u("  What is 2\nplus 2? "), a("\n It  is 4. ")],
    "empty": [u("Hello"), a("")],
    "foreign": [u("¿Qué? 😀"), a("日本 é")],
}


@pytest.mark.parametrize("name", DIALOGS)
def test_ids_are_metas_and_the_loss_sees_the_answer_only(tok, name):
    messages = DIALOGS[name]
    user, answer = (m["content"].strip() for m in messages)
    ids, mask = encode_dialog(tok, messages)
    assert ids == reference(tok, [(user, answer)])
    assert len(mask) == len(ids)
    assert answers(tok, ids, mask) == [answer + " "]
    assert tok.decode([i for i, m in zip(ids, mask, strict=True) if not m]) == (
        f"[INST] {user} [/INST]"
    )


def test_a_dialogue_is_its_pairs_one_after_the_other(tok):
    first, second = DIALOGS["one"], DIALOGS["foreign"]
    both = encode_dialog(tok, first + second)
    one, two = encode_dialog(tok, first), encode_dialog(tok, second)
    assert both == (one[0] + two[0], one[1] + two[1])
    assert answers(tok, *both) == ["Anna lives in Brill. ", "日本 é "]


def test_the_system_text_enters_the_first_turn_only(tok):
    system, user = "You are kind.", "What is 2 plus 2?"
    ids, mask = encode_dialog(tok, [s(system), u(user), a("4."), u(user), a("4.")])
    merged = f"<<SYS>>\n{system}\n<</SYS>>\n\n{user}"
    assert ids == reference(tok, [(merged, "4."), (user, "4.")])
    assert answers(tok, ids, mask) == ["4. ", "4. "]


def test_an_open_turn_is_a_prompt(tok):
    messages = [*DIALOGS["one"], u("What is 2 plus 2?")]
    ids, mask = encode_dialog(tok, messages)
    pair = ("Where does Anna live?", "Anna lives in Brill.")
    assert ids == reference(tok, [pair], last="What is 2 plus 2?")
    assert ids[-1] != tok.eos_id and not mask[-1]
    assert prompt_ids(tok, messages) == ids


def test_the_prompt_is_where_training_put_the_answer(tok):
    """What generation starts from is a prefix of what training has seen."""
    for separator in (False, True) if "<sep>" in tok else (False,):
        for messages in DIALOGS.values():
            ids, mask = encode_dialog(tok, messages, separator)
            prompt = prompt_ids(tok, messages[:1], separator)
            assert ids[: len(prompt)] == prompt
            assert mask == [False] * len(prompt) + [True] * (len(ids) - len(prompt))


def test_the_separator_is_one_extra_unsupervised_piece(tok):
    messages = [*DIALOGS["one"], *DIALOGS["spaces"]]
    if "<sep>" not in tok:
        with pytest.raises(ValueError, match="<sep>"):
            encode_dialog(tok, messages, separator=True)
        return
    ids, mask = encode_dialog(tok, messages, separator=True)
    sep = tok.id("<sep>")
    assert ids.count(sep) == 2
    kept = [(i, m) for i, m in zip(ids, mask, strict=True) if i != sep]
    assert kept == list(zip(*encode_dialog(tok, messages), strict=True))
    assert not any(m for i, m in zip(ids, mask, strict=True) if i == sep)


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<sep>"])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_tag_inside_any_text_is_refused(tok, tag, where):
    messages = [s("Be kind."), u("Hello."), a("Good day.")]
    messages[where] = messages[where] | {"content": f"Hello{tag} there"}
    with pytest.raises(ValueError, match="kept for the dialogue's own layout"):
        encode_dialog(tok, messages)


@pytest.mark.parametrize(
    "messages, hint",
    [
        ([], "at least one user"),
        ([s("Be kind.")], "at least one user"),
        ([a("Hello.")], "message 1 .* the user's turn"),
        ([s("x"), a("y")], "message 2 .* the user's turn"),
        ([u("x"), u("y")], "message 2 .* the assistant's turn"),
        ([u("x"), s("y")], "message 2 .* the assistant's turn"),
        ([u("x"), {"role": "robot", "content": "y"}], "role 'robot'"),
        ([u("x"), {"role": "assistant"}], "message 2 has no text"),
    ],
)
def test_roles_out_of_order_are_one_sentence(tok, messages, hint):
    with pytest.raises(ValueError, match=f"(?i){hint}"):
        encode_dialog(tok, messages)


def test_a_prompt_must_end_with_the_user(tok):
    with pytest.raises(ValueError, match="must end with a user"):
        prompt_ids(tok, DIALOGS["one"])


def test_a_vocabulary_that_hides_the_boundary_is_refused(tok, monkeypatch):
    class Joining:
        def encode(self, text, bos=False, eos=False):
            return [len(text)]  # the whole text is one piece

    with pytest.raises(ValueError, match="no loss mask"):
        encode_dialog(Joining(), DIALOGS["one"])
