"""Comparisons on disk: well-formed lines are read, the others reported by number."""

import gzip
import json
import os

import pytest

from cria import preferences
from cria import world as worlds
from cria.config import GRADES
from cria.preference_files import Comparison, Problem, load, save
from cria.world.prompts import mixture

HH = (
    "\n\nHuman: Hi there\n\nAssistant: Hello! How can I help?"
    "\n\nHuman: What is two and two?\n\nAssistant:"
)


def hh(chosen=" Four.", rejected=" Five.", start=HH):
    return {"chosen": start + chosen, "rejected": start + rejected}


def write(path, *lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def ours(**changes):
    row = {"turns": [["user", "Hello!"]], "chosen": "Hi.", "rejected": "Go away."}
    return {**row, **changes}


# HH-RLHF


def test_transcripts_of_several_turns_are_taken_apart(tmp_path):
    found = load(write(tmp_path / "hh.jsonl", hh()), ground="safety")
    assert found.problems == []
    assert found.comparisons == [
        Comparison(
            turns=(
                ("user", "Hi there"),
                ("assistant", "Hello! How can I help?"),
                ("user", "What is two and two?"),
            ),
            chosen="Four.",
            rejected="Five.",
            ground="safety",
            source="hh.jsonl",
        )
    ]
    c = found.comparisons[0]
    assert c.grade is None and c.safe is None and c.prompt is None
    assert [m["role"] for m in c.messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize("turns", [1, 2, 3, 12])
def test_any_number_of_turns(tmp_path, turns):
    start = "".join(f"\n\nHuman: q{i}\n\nAssistant: a{i}" for i in range(turns - 1))
    start += "\n\nHuman: last\n\nAssistant:"
    (c,) = load(write(tmp_path / "x.jsonl", hh(start=start))).comparisons
    assert len(c.turns) == 2 * turns - 1 and c.turns[-1] == ("user", "last")
    assert c.answers == ("Four.", "Five.")


def test_odd_but_readable_transcripts(tmp_path):
    """No empty line in front, paragraphs, the words themselves, silence, no space."""
    inner = "\n\nHuman: Say\n\ntwo paragraphs. I am Human: so?\n\nAssistant:"
    found = load(
        write(
            tmp_path / "odd.jsonl",
            hh(start=HH.lstrip()),
            "",
            hh(" One.\n\nTwo.", " Human: me.", start=inner),
            "   ",
            hh(chosen=" Yes."),
            hh(rejected=""),
            {**hh(), "extra": 1},
            hh(start=HH.replace(": ", ":")),
        )
    )
    assert found.problems == [] and len(found.comparisons) == 6
    first, second, _, silent, extra, tight = found.comparisons
    assert first.turns[0] == ("user", "Hi there")
    assert second.turns == (("user", "Say\n\ntwo paragraphs. I am Human: so?"),)
    assert second.answers == ("One.\n\nTwo.", "Human: me.")
    assert silent.rejected == ""
    assert extra.answers == ("Four.", "Five.")
    assert tight.turns == first.turns


BROKEN = {
    "cut": ('{"chosen": "\\n\\nHum', "no JSON"),
    "list": ([1, 2], "no JSON object"),
    "number": ("3", "no JSON object"),
    "half": ({"chosen": HH + " Four."}, "no text under 'rejected'"),
    "null": ({**hh(), "rejected": None}, "no text under 'rejected'"),
    "differ early": (
        {"chosen": HH + " a", "rejected": HH.replace("two", "too") + " b"},
        "differ before the last answer",
    ),
    "other length": (
        {"chosen": HH + " a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
        "differ before the last answer",
    ),
    "no speaker": ({"chosen": "Four.", "rejected": "Five."}, 'not begin with "Human:"'),
    "a preface": (
        {"chosen": "Once." + HH + " a", "rejected": "Once." + HH + " b"},
        'not begin with "Human:"',
    ),
    "no answer": (
        {"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi"},
        "not end with an answer",
    ),
    "twice": (
        hh(start="\n\nHuman: Hi\n\nHuman: Hi?\n\nAssistant:"),
        "must take turns",
    ),
    "assistant first": (
        hh(start="\n\nAssistant: Hi\n\nHuman: Hi?\n\nAssistant:"),
        "must take turns",
    ),
    "assistant alone": (hh(start="\n\nAssistant:"), "must take turns"),
    "identical": (hh(" Four.", " Four. "), "identical"),
    "tag": (hh(chosen=" [/INST] I am the user now"), r"chat tag [/INST]"),
    "tag in the other": (hh(rejected=" <</SYS>>"), "chat tag <</SYS>>"),
    "tag above": (hh(start=HH.replace("Hi", "<<SYS>>")), "chat tag <<SYS>>"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_line_is_told_of_by_number_and_the_rest_kept(tmp_path, name):
    line, reason = BROKEN[name]
    path = write(tmp_path / "x.jsonl", hh(), "", line, hh(chosen=" 4."))
    found = load(path)
    assert [c.chosen for c in found.comparisons] == ["Four.", "4."]
    (problem,) = found.problems
    assert isinstance(problem, Problem)
    assert problem.line == 3 and reason in problem.reason
    assert "1 line was" in str(found) and "line 3" in str(found)
    assert problem.reason in str(found) and str(tmp_path) not in str(found)


def test_the_summary_counts(tmp_path):
    bad = [hh()] * 3 + ["{"] * 2
    found = load(write(tmp_path / "x.jsonl", *bad))
    assert str(found).startswith("x.jsonl: 3 comparisons; 2 lines were left out")
    assert "line 4" in str(found)
    whole = load(write(tmp_path / "y.jsonl", hh()))
    assert str(whole) == "y.jsonl: 1 comparison"
    empty = load(write(tmp_path / "z.jsonl", ""))
    assert empty.comparisons == empty.problems == []


# Ours


def test_every_field_of_our_own_lines(tmp_path):
    row = ours(
        turns=[["system", "Be brief."], ["user", "Hi"], ["assistant", "Hello."]]
        + [["user", "Who are you?"]],
        grade="slightly",
        ground="safety",
        source="mine",
        safe=[True, False],
        ended=[False, True],
        batch=3,
    )
    (c,) = load(write(tmp_path / "x.jsonl", row)).comparisons
    assert c.turns[0] == ("system", "Be brief.") and len(c.turns) == 4
    assert (c.grade, c.ground, c.source) == ("slightly", "safety", "mine")
    assert (c.safe, c.ended, c.batch) == ((True, False), (False, True), 3)
    (short,) = load(write(tmp_path / "y.jsonl", ours())).comparisons
    assert short == Comparison((("user", "Hello!"),), "Hi.", "Go away.")


@pytest.mark.parametrize("grade", [*GRADES, None])
def test_all_grades_are_known(tmp_path, grade):
    (c,) = load(write(tmp_path / "x.jsonl", ours(grade=grade))).comparisons
    assert c.grade == grade


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"grade": "best"}, "no grade 'best'"),
        ({"grade": ["better"]}, "no grade"),
        ({"grade": 1}, "no grade 1"),
        ({"ground": "harmless"}, "no ground 'harmless'"),
        ({"garde": "better"}, "unknown key 'garde'"),
        ({"safe": [True]}, "safe must be two"),
        ({"safe": "yes"}, "safe must be two"),
        ({"ended": [1, 0]}, "ended must be two"),
        ({"batch": "3"}, "batch must be"),
        ({"source": 5}, "source must be"),
        ({"turns": []}, "here it is nobody"),
        ({"turns": "Hello!"}, "turns must be a list"),
        ({"turns": [["user"]]}, "turns must be a list"),
        ({"turns": [["user", 5]]}, "turns must be a list"),
        ({"turns": [["human", "Hi"]]}, "here it is human"),
        ({"turns": [["user", "Hi"], ["assistant", "Ho"]]}, "must take turns"),
        ({"turns": [["user", "Hi"], ["user", "Ho"]]}, "must take turns"),
        ({"turns": [["user", "Hi"], ["system", "x"], ["user", "Ho"]]}, "take turns"),
        ({"turns": [["system", "Be brief."]]}, "here it is nobody"),
        ({"chosen": 3}, "no text under 'chosen'"),
        ({"chosen": "Go away."}, "identical"),
        ({"turns": [["user", "</s> <<SYS>>"]]}, "chat tag"),
        ({"prompt": {"id": "x"}}, "not one of the tiny world"),
        ({"prompt": 7}, "not one of the tiny world"),
    ],
)
def test_a_wrong_field_of_ours_is_one_clear_reason(tmp_path, change, reason):
    found = load(write(tmp_path / "x.jsonl", ours(), ours(**change), ours()))
    assert len(found.comparisons) == 2
    (problem,) = found.problems
    assert problem.line == 2 and reason in problem.reason


def test_the_same_words_may_differ_in_how_they_ended(tmp_path):
    row = ours(rejected="Hi.", ended=[True, False])
    assert len(load(write(tmp_path / "x.jsonl", row)).comparisons) == 1


def test_both_forms_may_stand_in_one_file(tmp_path):
    found = load(write(tmp_path / "x.jsonl", ours(), hh()))
    assert [c.source for c in found.comparisons] == ["own", "x.jsonl"]


# Files


def test_gzip_is_read_like_plain_text(tmp_path):
    plain = write(tmp_path / "x.jsonl", hh(), "{", ours())
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    a, b = load(plain), load(packed)
    assert b.problems == a.problems and len(b.comparisons) == 2
    assert b.comparisons[0].source == "x.jsonl.gz"
    assert b.comparisons[1] == a.comparisons[1]


def random_lines(n=300):
    return "\n".join(json.dumps(hh(f" {os.urandom(40).hex()}")) for _ in range(n))


def test_a_truncated_gzip_is_one_clear_error(tmp_path):
    whole = gzip.compress(random_lines().encode())
    for size in (len(whole) // 2, len(whole) - 4, 5):
        (tmp_path / "x.jsonl.gz").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="x.jsonl.gz is no whole gzip file"):
            load(tmp_path / "x.jsonl.gz")


def test_a_gzip_damaged_in_the_middle_is_one_clear_error(tmp_path):
    whole = bytearray(gzip.compress(random_lines().encode()))
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(64)
    (tmp_path / "x.jsonl.gz").write_bytes(whole)
    with pytest.raises(ValueError, match="x.jsonl.gz is no whole gzip file"):
        load(tmp_path / "x.jsonl.gz")


@pytest.mark.parametrize(
    ("line", "reason"),
    [("[" * 100_000, "nested too deep"), (hh(" \ud800"), "half a character")],
    ids=["brackets", "surrogate"],
)
def test_an_odd_line_costs_only_itself(tmp_path, line, reason):
    text = line if isinstance(line, str) else json.dumps(line)
    rows = [json.dumps(hh()), text, json.dumps(hh(" Six."))]
    (tmp_path / "x.jsonl").write_text("\n".join(rows), encoding="utf-8")
    found = load(tmp_path / "x.jsonl")
    assert len(found.comparisons) == 2
    assert [p.line for p in found.problems] == [2]
    assert reason in found.problems[0].reason


def test_plain_text_named_gz_and_gzip_named_jsonl(tmp_path):
    write(tmp_path / "x.jsonl.gz", hh())
    with pytest.raises(ValueError, match="no whole gzip file"):
        load(tmp_path / "x.jsonl.gz")
    (tmp_path / "x.jsonl").write_bytes(gzip.compress(random_lines().encode()))
    with pytest.raises(ValueError, match="x.jsonl is no UTF-8 text file"):
        load(tmp_path / "x.jsonl")


def test_binary_rubbish_is_one_clear_error(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\x80\x04\x95" + os.urandom(500) + b"\xff\xfe")
    with pytest.raises(ValueError, match="no UTF-8 text file"):
        load(tmp_path / "x.jsonl")


def test_what_is_not_there_and_what_is_no_ground(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        load(tmp_path / "nothing.jsonl")
    with pytest.raises(FileNotFoundError, match="no file"):
        load(tmp_path)
    path = write(tmp_path / "x.jsonl", hh())
    with pytest.raises(ValueError, match="no ground 'harmless'"):
        load(path, ground="harmless")


# Save


def everything():
    village = worlds.load()
    world_ones = [
        Comparison(
            p.turns,
            'Oui ! « ça » \u2028 \n\n"quoted" \\n',
            "",
            grade=grade,
            ground="safety",
            safe=(True, False),
            ended=(False, True),
            batch=2,
            prompt=p,
        )
        for p, grade in zip(mixture(village, "dev", 5), [*GRADES, None], strict=True)
    ]
    turns = (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    return [*world_ones, Comparison(turns, "x", "y", source="elsewhere")]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_what_is_saved_is_loaded_again(tmp_path, name):
    written = everything()
    save(written, tmp_path / name)
    found = load(tmp_path / name)
    assert found.comparisons == written and found.problems == []
    assert len({*map(hash, found.comparisons)}) == len(written)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_saving_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.jsonl"
    save(everything()[:2], path)
    before = path.read_bytes()

    def breaks():
        yield everything()[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        save(breaks(), path)
    assert path.read_bytes() == before
    with pytest.raises(RuntimeError, match="no more"):
        save(breaks(), tmp_path / "new.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_saving_in_full_and_in_vain_folders(tmp_path):
    with pytest.raises(FileNotFoundError):
        save([], tmp_path / "nowhere" / "x.jsonl")
    save([], tmp_path / "x.jsonl")
    assert load(tmp_path / "x.jsonl").comparisons == []


def test_the_same_door_in_preferences():
    assert preferences.load is load and preferences.save is save
    assert preferences.Comparison is Comparison
