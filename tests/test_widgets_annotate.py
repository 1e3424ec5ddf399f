"""Playing annotator: every button counts, and agreement is counted right."""

from itertools import product
from random import Random

import pytest

from cria import world as worlds
from cria.config import GRADES
from cria.preferences import Comparison
from cria.widgets_annotate import AnnotateBox, Task, agreement, colleagues, table, tasks
from cria.world.annotators import demonstrate
from cria.world.prompts import prompts


@pytest.fixture(scope="module")
def village():
    return worlds.load()


@pytest.fixture(scope="module")
def comparisons(village):
    """An expert's answer, preferred to an unsafe or a sloppy one."""
    rng, made = Random(3), []
    for kind, ground, worse in (
        *[("sum", "helpfulness", "sloppy")] * 12,
        *[("harm", "safety", "unsafe")] * 12,
    ):
        prompt = prompts(village, kind, "test", seed=len(made))[0]
        made.append(
            Comparison(
                prompt.turns,
                demonstrate(village, prompt, "expert", rng),
                demonstrate(village, prompt, worse, rng),
                ground=ground,
                prompt=prompt,
            )
        )
    return made


def toy(gap, votes, answers=("a", "b")):
    return Task("helpfulness", (("user", "?"),), answers, gap, tuple(votes))


TOY = [
    toy(0.5, [(1, "better"), (1, "better"), (1, "slightly"), (0, "negligibly")]),
    toy(-0.2, [(0, "slightly"), (1, "negligibly"), (1, "slightly"), (0, "better")]),
    toy(0.0, [(0, "negligibly")] * 4),
]


# Tasks


def test_sides_are_drawn_at_random_and_hide_who_was_chosen(village, comparisons):
    made = tasks(village, comparisons, seed=1)
    chosen_is_b = [
        t.answers[1] == c.chosen for t, c in zip(made, comparisons, strict=True)
    ]
    assert 4 < sum(chosen_is_b) < 20
    for t, c in zip(made, comparisons, strict=True):
        assert sorted(t.answers) == sorted(c.answers) and t.turns == c.turns
        assert t.ground == c.ground
    assert made == tasks(village, comparisons, seed=1)
    assert made != tasks(village, comparisons, seed=2)


def test_the_judge_looks_at_the_ground_that_is_asked_for(village, comparisons):
    """On safety the refusal wins; on helpfulness, which it lacks, it does not."""
    harm = [c for c in comparisons if c.prompt.kind == "harm"]
    both = {
        ground: [Comparison(**{**vars(c), "ground": ground}) for c in harm]
        for ground in ("safety", "helpfulness")
    }
    for ground, several in both.items():
        for t, c in zip(tasks(village, several), several, strict=True):
            judge_prefers = t.answers[int(t.gap > 0)]
            assert (judge_prefers == c.chosen) == (ground == "safety")


def test_votes_follow_the_gap(village, comparisons):
    clear = [t for t in tasks(village, comparisons, 200) if abs(t.gap) > 0.7]
    assert len(clear) > 6
    for t in clear:
        share = sum(v == int(t.gap > 0) for v, _ in t.votes) / 200
        assert share > 0.85 and len(t.votes) == 200
        assert {g for _, g in t.votes} <= set(GRADES)


def test_an_answer_that_was_cut_off_says_so_and_loses(village, comparisons):
    c = comparisons[0]
    cut = Comparison(c.turns, c.chosen, c.chosen, ended=(True, False), prompt=c.prompt)
    (t,) = tasks(village, [cut])
    side = int("cut off" in t.answers[1])
    assert "cut off" in t.answers[side] and "cut off" not in t.answers[1 - side]
    assert (t.gap > 0) == (side == 0) and t.gap != 0


def test_what_cannot_be_judged_is_refused(village, comparisons):
    foreign = Comparison((("user", "Hi"),), "a", "b")
    with pytest.raises(ValueError, match="without a prompt"):
        tasks(village, [foreign])
    with pytest.raises(ValueError, match="people is 1"):
        tasks(village, comparisons, people=1)


# Agreement


def test_agreement_on_hand_made_numbers():
    found = agreement(TOY, [(1, "better"), (1, "slightly"), (0, "better")])
    # pair 1: judge yes, 3 of 4, 2 of 4 · pair 2: no, 2 of 4, 1 of 4 · pair 3: half
    assert found == pytest.approx(
        {"judge": (1 + 0 + 0.5) / 3, "annotators": (3 + 2 + 4) / 12, "button": 3 / 12}
    )


def test_the_opposite_verdicts_agree_where_these_do_not():
    for sides in product((0, 1), repeat=3):
        mine = agreement(TOY, [(s, "better") for s in sides])
        other = agreement(TOY, [(1 - s, "better") for s in sides])
        assert mine["judge"] + other["judge"] == pytest.approx(1)
        assert mine["annotators"] + other["annotators"] == pytest.approx(1)


def test_colleagues_agree_as_all_ordered_pairs_of_them_do():
    same = side = judge = n = 0
    for t in TOY:
        for i, j in product(range(4), repeat=2):
            if i != j:
                n += 1
                side += t.votes[i][0] == t.votes[j][0]
                same += t.votes[i] == t.votes[j]
                judge += 0.5 if not t.gap else t.votes[i][0] == (t.gap > 0)
    expected = {"judge": judge / n, "annotators": side / n, "button": same / n}
    assert colleagues(TOY) == pytest.approx(expected)


def test_one_verdict_a_task_or_it_is_refused():
    with pytest.raises(ValueError, match="2 verdicts on 3 tasks"):
        agreement(TOY, [(0, "better")] * 2)
    with pytest.raises(ValueError, match="0 verdicts on 0 tasks"):
        agreement([], [])


def test_table_has_a_row_a_pair_and_your_verdicts_where_there_are_any():
    plain = table(TOY)
    assert list(plain.index) == [1, 2, 3] and "you" not in plain
    assert list(plain["judge"]) == ["B by 0.50", "A by 0.20", "equal"]
    assert list(plain["annotators"]) == ["B, 75%", "A, 50%", "A, 100%"]
    yours = table(TOY, [(0, "better"), (1, "slightly"), (1, "negligibly")])
    assert list(yours["you"]) == ["A, better", "B, slightly", "B, negligibly"]


# The box


def press(box, side, grade):
    box.buttons[side, grade].click()


def test_there_is_a_button_for_each_grade_and_side_and_each_is_its_own():
    assert set(AnnotateBox(TOY).buttons) == set(product((0, 1), GRADES))
    for side, grade in product((0, 1), GRADES):
        box = AnnotateBox(TOY)
        press(box, side, grade)
        assert box.verdicts == [(side, grade)]


def test_pairs_come_one_after_the_other_and_then_the_result():
    box = AnnotateBox(TOY)
    verdicts = [(1, "better"), (1, "slightly"), (0, "better")]
    for i, verdict in enumerate(verdicts):
        assert f"Pair {i + 1} of 3" in box.shown.value
        assert box.choices.layout.display != "none" == box.anew.layout.display
        press(box, *verdict)
    assert box.verdicts == verdicts
    assert box.choices.layout.display == "none" != box.anew.layout.display
    found, theirs = agreement(TOY, verdicts), colleagues(TOY)
    for share in (*list(found.values())[:2], *list(theirs.values())[:2]):
        assert f"{share:.0%}" in box.shown.value
    press(box, 0, "better")  # a click that comes too late
    assert box.verdicts == verdicts
    box.anew.click()
    assert box.verdicts == [] and "Pair 1 of 3" in box.shown.value


def test_texts_are_shown_as_text_and_the_judge_stays_hidden():
    box = AnnotateBox([toy(0.5, [(1, "better")] * 2, ("<b>bold</b>", ""))])
    assert "&lt;b&gt;bold" in box.shown.value and "<b>bold" not in box.shown.value
    assert "(no words)" in box.shown.value
    assert "0.50" not in box.shown.value and "judge" not in box.shown.value
    press(box, 0, "better")
    assert "<b>bold" not in box.shown.value and "0.50" in box.shown.value


def test_where_nothing_can_be_clicked_it_is_a_sentence():
    shown = AnnotateBox(TOY)._repr_mimebundle_()
    assert shown["text/plain"].startswith("3 pairs to compare")
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert "no pairs" in AnnotateBox([]).shown.value
