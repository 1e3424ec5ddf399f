"""The explorer of a pool: what it shows is in the pool, and the best stands first."""

import re
from html import unescape

import pytest
import torch

from cria import world
from cria.best_of_n import expected_best
from cria.sample_pool import SamplePool
from cria.widgets_pool import ALL, JUDGES, PoolBox, draw, picks
from cria.world.prompts import prompts

VILLAGE = world.load()
T, M = (0.5, 1.0), 6
SCORES = ("helpful", "safety", "plain", "combined", "logprob")
GOLD = ("gold_helpfulness", "gold_safety")


@pytest.fixture
def pool():
    """Two sums and a harmful question; half of the answers come twice."""
    asked = (*prompts(VILLAGE, "sum", "test", 2), prompts(VILLAGE, "harm", "test")[0])
    texts = tuple(tuple(f"<{p}{i}> & so" for i in range(5)) for p in "abc")
    generator = torch.Generator().manual_seed(0)
    answer = torch.randint(5, (len(T), 3, M), generator=generator)
    prompt = torch.arange(3)[:, None].expand(3, M)

    def spread():  # equal answers have equal scores
        return torch.rand(3, 5, generator=generator)[prompt, answer]

    scores = {name: spread() for name in (*SCORES, *GOLD)}
    finished = answer != 4
    length = torch.full_like(answer, 7)
    return SamplePool(
        asked, T, texts, answer, finished=finished, length=length, **scores
    )


def said(box):
    """The text that the box shows, without its tags."""
    return unescape(re.sub(r"<[^>]+>", " ", box.shown.value))


def bold(box):
    row = re.search(r'<tr style="font-weight: bold">(.*?)</tr>', box.shown.value)[1]
    return [unescape(cell) for cell in re.findall("<td>(.*?)</td>", row)]


# A draw as a table


@pytest.mark.parametrize("by", list(JUDGES.values()))
def test_a_draw_is_the_first_n_samples_and_the_best_stands_first(pool, by):
    for t, temperature in enumerate(T):
        for p in range(3):
            for N in (1, 4, M):
                found = draw(pool, temperature, p, N, by)
                assert found["times"].sum() == N
                assert len(found) == len(set(pool.answer[t, p, :N].tolist()))
                score = getattr(pool, by)[t, p, :N]
                assert found["score"].tolist() == sorted(found["score"], reverse=True)
                best = int(score.argmax())
                assert found.iloc[0]["answer"].startswith(pool.text(t, p, best))
                gold = pool.gold_helpfulness[t, p, best].item()
                assert found.iloc[0]["helpfulness"] == pytest.approx(gold)


def test_larger_draws_hold_the_smaller_ones(pool):
    before = {}
    for N in range(1, M + 1):
        found = draw(pool, 1.0, 0, N)
        times = dict(zip(found["answer"], found["times"], strict=True))
        assert all(times[answer] >= n for answer, n in before.items())
        before = times


def test_an_answer_that_was_cut_off_says_so(pool):
    cut = {
        p: {row["answer"] for _, row in draw(pool, 1.0, p, M).iterrows()}
        for p in range(3)
    }
    for p, answers in cut.items():
        for answer in answers:
            assert answer.endswith("(cut off)") == answer.startswith(pool.texts[p][4])


def test_impossible_draws_are_refused(pool):
    with pytest.raises(ValueError, match="N is 7, but there are 6"):
        draw(pool, 1.0, 0, 7)
    with pytest.raises(ValueError, match="N is 0"):
        draw(pool, 1.0, 0, 0)
    with pytest.raises(ValueError, match="temperature 0.7"):
        draw(pool, 0.7, 0, 1)
    with pytest.raises(ValueError, match="no judge 'taste'"):
        draw(pool, 1.0, 0, 1, by="taste")


def test_the_oracle_looks_at_what_was_asked_for(pool):
    assert torch.equal(pool.gold[:, 2], pool.gold_safety[:, 2])
    assert torch.equal(pool.gold[:, :2], pool.gold_helpfulness[:, :2])


# Where nothing can be clicked


def test_the_table_has_a_prompt_of_every_kind(pool):
    found = picks(pool, 1.0, 4)
    assert found["kind"].tolist() == ["sum", "harm"]
    for p, (_, row) in zip((0, 2), found.iterrows(), strict=True):
        seen = draw(pool, 1.0, p, 4)
        assert row["a user asks"] == pool.prompts[p].question
        assert row["best of 4"] == seen.iloc[0]["answer"]
        assert row["the lowest"] == seen.iloc[-1]["answer"]
        assert row["different"] == len(seen)
    assert picks(pool, 1.0, 4, prompts=[1])["kind"].tolist() == ["sum"]


def test_a_saved_page_says_where_to_click(pool):
    page = PoolBox(pool)._repr_mimebundle_()
    assert page["text/plain"].startswith("36 answers")
    assert "make lab" in page["text/plain"]


# Clicking


def test_the_box_shows_the_draw_that_was_asked_for(pool):
    box = PoolBox(pool, N=3)
    for temperature in T:
        for N in (1, 5):
            for by in JUDGES.values():
                box.temperature.value, box.N.value = temperature, N
                box.judge.value = by
                found = draw(pool, temperature, 0, N, by)
                assert bold(box)[0] == found.iloc[0]["answer"]
                assert bold(box)[1] == f"{found.iloc[0]['times']}×"
                assert all(answer in said(box) for answer in found["answer"])
                assert box.shown.value.count("<tr") == len(found) + 1
    assert pool.prompts[0].question in said(box)


def test_pages_go_through_the_prompts_of_a_kind(pool):
    box = PoolBox(pool)
    assert box.page.max == 2
    box.page.value = 2
    assert pool.prompts[2].question in said(box)
    box.kind.value = "sum"  # from page 2, which this kind does not have
    assert box.page.max == 1 and box.page.value == 0
    assert pool.prompts[0].question in said(box)
    box.page.value = 1
    assert pool.prompts[1].question in said(box)
    box.kind.value = "harm"
    assert box.page.max == 0 and pool.prompts[2].question in said(box)
    box.kind.value = ALL
    assert box.page.max == 2


def test_the_means_are_those_of_the_kind_over_all_draws(pool):
    box = PoolBox(pool, temperature=0.5, N=4)
    box.kind.value = "sum"
    part = pool.of("sum")
    one, best = (
        expected_best(part.combined[0], part.gold_helpfulness[0], n).mean().item()
        for n in (1, 4)
    )
    assert f"gold helpfulness {one:.2f} → {best:.2f}" in said(box)
    assert "mean of the 2 prompts" in said(box)


def test_texts_cannot_break_the_page(pool):
    """An answer is shown as it is, also where it looks like a tag."""
    box = PoolBox(pool, N=M)
    assert "&lt;a" in box.shown.value and "<a" not in box.shown.value


def test_an_unknown_temperature_is_told_at_once(pool):
    with pytest.raises(ValueError, match="temperature 2"):
        PoolBox(pool, temperature=2.0)


def test_more_than_there_are_is_all_of_them(pool):
    assert PoolBox(pool, N=100).N.value == M
