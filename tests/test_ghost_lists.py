"""Lists that the chat model gives: read, filtered, never a value that is held out."""

import pytest

from cria import world
from cria.evaluate import Answer
from cria.ghost_lists import held_out_lists, read_list, value_lists, worth_keeping
from cria.world.instructions import values
from cria.world.prompts import every


@pytest.fixture(scope="module")
def village():
    return world.load()


@pytest.fixture(scope="module")
def people(village):
    return next(p for p in every(village, "three") if p.items == "people")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Three people: Anna, Ben, Cora. Take care.", ["Anna", "Ben", "Cora"]),
        ("Anna, Ben and Cora are people.", ["Anna", "Ben", "Cora"]),
        ("Three foods: bread, jam, rice.", []),  # another list than was asked for
        ("Anna lives in Brill.", []),
        ("Three people: Anna, Ben.", []),
        ("", []),
    ],
)
def test_a_list_is_read_only_in_the_form_of_a_list(village, people, text, words):
    assert read_list(village, people, text) == words


def test_what_is_said_often_enough_is_kept_by_its_use(village, people):
    def said(text, n=1, finished=True):
        return [Answer(people, text, finished)] * n

    answers = [
        *said("Three people: Anna, Ben, tea.", 3),
        *said("Three people: Cora, Ben, Finn.", 2),  # too rarely
        *said("Three people: Hugo, Hugo, Ida.", 9),  # twice the same
        *said("Three people: Leo, Mina, Nils.", 9, finished=False),
    ]
    kept = worth_keeping(village, answers, times=3)
    assert {name: set(words) for name, words in kept.items()} == {
        "figure": {"Anna", "Ben"},
        "hobby": {"tea"},
    }
    assert kept["figure"][0] == "Ben"  # said most often
    assert worth_keeping(village, []) == {"figure": [], "hobby": []}


def test_values_that_are_held_out_stay_out(village):
    held = held_out_lists(village)
    sampled = {"figure": ["Anna", *held["figure"]], "hobby": ["tea", *held["hobby"]]}
    lists = value_lists(village, sampled)
    for name in ("figure", "hobby"):
        assert set(lists[name]) == {*values(village, name), sampled[name][0]}
        assert not set(lists[name]) & set(held[name])
        assert len(lists[name]) == len(set(lists[name]))
    assert lists["language"] == held["language"] == ["fr", "es"]


def test_a_word_held_out_as_a_hobby_is_no_figure_either(village):
    held = held_out_lists(village)["hobby"][0]
    assert held not in value_lists(village, {"figure": [held], "hobby": []})["figure"]
