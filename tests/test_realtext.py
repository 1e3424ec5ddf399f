"""Real chats: no traces of the senders, no chat on both sides of a split."""

import re

import pytest

from cria import realtext


@pytest.fixture(scope="module")
def chats():
    return realtext.chats()


def test_there_is_plenty_of_real_english(chats):
    assert len(chats) > 4000
    assert 10e6 < sum(map(len, chats)) < 13e6
    assert all(len(chat.split("\n")) >= 2 for chat in chats)
    words = re.findall(r"[a-z]+", " ".join(chats[:500]).lower())
    assert sum(w in {"the", "i", "you", "to", "a"} for w in words) > 0.1 * len(words)


def test_nobody_can_be_contacted(chats):
    text = "\n".join(chats)
    assert not re.search(r"[\w.]+@\w|(?<!\w)@\w", text)
    assert not re.search(r"(?i)https?:|\bwww\.|\w\.(com|edu|org|net)\b", text)
    assert not re.search(r"\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}", text)
    hexid = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}"  # sender ids look like this
    assert not re.search(hexid, text)
    assert "2018-05-02T" not in text


@pytest.mark.parametrize(
    "line, kept",
    [
        ("write to me@home.org", False),
        ("follow me @anna", False),
        ("see youtube.com/watch", False),
        ("(808) 555-0199", False),
        ("Awww. I was there in 2012 or 2013!", True),
        ("wut! @ 3 o'clock", True),
    ],
)
def test_only_contacts_are_filtered(line, kept):
    assert bool(realtext._turn([{"text": line}])) is kept


def test_the_order_is_fixed_and_limit_takes_the_first(chats):
    assert realtext.chats(limit=20) == chats[:20]
    assert len(set(chats)) == len(chats)


def test_a_chat_is_on_one_side_whatever_else_is_there(chats):
    train, validation = realtext.split(chats, 0.1)
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(chats)
    assert 0.08 < len(validation) / len(chats) < 0.12
    part = realtext.split(chats[::3] + chats[::3], 0.1)
    assert set(part[0]) <= set(train) and set(part[1]) <= set(validation)


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        realtext.split(["a"], share)


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(realtext.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install chitchat-dataset"):
        realtext.chats()
