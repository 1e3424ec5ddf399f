"""Findings: verdicts follow from numbers, and from nothing else."""

import json
import math
import random
from pathlib import Path

import pytest

from cria import claims, config, findings, intervals, scoreboard, stages
from cria.intervals import Expectation, t_975, t_interval

CLAIMS = """
- {id: 1, says: Up is up., paper: "Yes, 3 < 4.", section: "2", notebook: 03_x,
   measures: [{name: gain, what: the gain, unit: share, expect: "> 0"},
              {name: loss, what: the loss, unit: nats, expect: "< 0"}]}
- {id: 2, says: Same is same., paper: "None.", section: "2", notebook: 04_x,
   measures: [{name: gap, what: the gap, unit: nats, expect: "abs < 0.1"}]}
"""
CLAIM_WITH_A_WHY = 'section: "2", notebook: 03_x, tried: "Two things were tried.",'


@pytest.fixture(autouse=True)
def house(tmp_path, monkeypatch):
    """A repository with two claims and an empty ledger."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/findings.yaml").write_text(CLAIMS)
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setenv("CRIA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def verdict(id, **choice):
    return "; ".join(findings.table([id], **choice)[0].verdicts)


def record_seeds(id, rows, profile="course"):
    for seed, values in enumerate(rows):
        findings.record(id, profile=profile, seed=seed, **values)
        findings.keep([id], profile, seed)


def test_nothing_recorded_is_not_measured():
    assert [row.verdicts for row in findings.table()] == [("not measured",)] * 2


def test_this_run_alone_decides_and_says_so():
    findings.record(1, profile="course", seed=0, gain=0.3)
    assert verdict(1) == "not measured"  # the loss is missing
    findings.record(1, profile="course", seed=0, loss=-1)
    assert verdict(1) == "shown (this run)"
    findings.record(1, profile="course", seed=0, loss=0.0)  # zero is not below zero
    assert verdict(1) == "not shown (this run)"


def test_a_value_that_is_no_number_is_not_measured():
    findings.record(2, profile="course", seed=0, gap=float("nan"))
    assert verdict(2) == "not measured"
    assert "NaN" not in findings.ledger_path().read_text()


def test_smoke_never_counts():
    findings.record(2, profile="smoke", seed=0, gap=0.0)
    assert verdict(2) == "not measured (smoke: numbers mean nothing)"
    findings.record(2, profile="course", seed=0, gap=5.0)
    findings.record(2, profile="smoke", seed=0, gap=0.0)  # newer, and passed over
    assert verdict(2) == "not shown (this run)"
    assert "smoke" in verdict(2, profile="smoke")
    with pytest.raises(ValueError, match="smoke"):
        findings.keep([2], "smoke", 0)


def test_other_settings_start_afresh_and_are_marked():
    findings.record(1, profile="course", seed=0, gain=0.3)
    longer = config.load("course", **{"pretrain.steps": 100_000})
    findings.record(1, profile=longer, seed=0, loss=-1)
    [row] = findings.table([1])
    assert row.run.changed and row.verdicts == ("not measured",)  # no mixing


def test_recorded_seeds_decide_over_this_run():
    record_seeds(2, [{"gap": gap} for gap in (0.01, -0.02, 0.0, 0.01)])
    findings.record(2, profile="course", seed=9, gap=7.0)
    assert verdict(2) == "shown (course, 4 seeds)"


@pytest.mark.parametrize(
    ("gains", "losses", "expected"),
    [
        ((0.3, 0.31, 0.29), (-1, -1.1, -0.9), "shown (course, 3 seeds)"),
        (
            (0.3, 0.31, 0.29),
            (1, 1.1, 0.9),
            "not shown (course, 3 seeds)",
        ),  # one wrong sign
        (
            (0.3, -0.1, 0.2),
            (-1, -1.1, -0.9),
            "not shown (course, 3 seeds)",
        ),  # straddles zero
        ((0.3,), (-1,), "shown (course, 1 seed)"),
    ],
)
def test_every_interval_must_lie_on_the_expected_side(gains, losses, expected):
    record_seeds(
        1, [{"gain": g, "loss": x} for g, x in zip(gains, losses, strict=True)]
    )
    assert verdict(1) == expected


def test_equality_needs_the_interval_inside_the_tolerance():
    record_seeds(2, [{"gap": 0.09}, {"gap": -0.09}])
    assert (
        verdict(2) == "not shown (course, 2 seeds)"
    )  # the mean is 0, the interval is wide


def test_keep_replaces_a_seed_and_writes_where_it_came_from(house):
    record_seeds(2, [{"gap": 0.5}, {"gap": 0.01}])
    findings.record(2, profile="course", seed=0, gap=0.02)
    findings.keep(None, "course", 0)
    kept = json.loads((house / "data/results/course/finding_02.json").read_text())
    assert [(r["seed"], r["values"]["gap"]) for r in kept["rows"]] == [
        (0, 0.02),
        (1, 0.01),
    ]
    assert kept["profile"] == "course" and kept["config"]["profile"] == "course"
    assert {"date", "versions", "machine"} <= set(kept["rows"][0])
    assert kept["rows"][0]["machine"]["auto_dtype"] in ("float32", "bfloat16")
    assert str(house) not in json.dumps(kept)


def test_keep_refuses_other_settings_and_missing_values():
    record_seeds(2, [{"gap": 0.0}])
    longer = config.load("course", **{"pretrain.steps": 100_000})
    findings.record(2, profile=longer, seed=1, gap=0.0)
    with pytest.raises(ValueError, match="course/finding_02.json holds other settings"):
        findings.keep([2], "course", 1)
    findings.record(1, profile="course", seed=0, gain=1)
    with pytest.raises(ValueError, match="finding 1 has no loss .* notebook 03_x"):
        findings.keep([1, 2], "course", 0)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean gain?"):
        findings.record(1, profile="course", seed=0, gian=1)
    with pytest.raises(ValueError, match="from 1 to 2"):
        findings.record(7, profile="course", seed=0, gain=1)


def test_a_damaged_ledger_is_one_sentence():
    findings.record(2, profile="course", seed=0, gap=0.0)
    path = findings.ledger_path()
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match="delete it and run the notebooks again"):
        findings.table()


def test_scoreboard_shows_numbers_verdicts_and_no_live_html():
    findings.record(1, profile="course", seed=3, gain=0.25, loss=-0.5)
    record_seeds(2, [{"gap": 0.02}, {"gap": 0.04}])
    board = findings.show()
    text, page = repr(board), board._repr_html_()
    for said in ("+0.25 ✓ (course, seed 3)", "−0.50 ✓", "+0.03 ± 0.13", "2 seeds"):
        assert said in text.replace("\n", " ") and said in page
    assert text.endswith("course: 0 shown, 1 not.\nshown in this run: 1.")
    assert "3 &lt; 4" in page and "3 < 4" not in page
    assert list(board.frame().this_run)[:2] == [0.25, -0.5]
    json.dumps([scoreboard.plain(row) for row in board.rows])


def test_every_profile_has_its_own_seeds_and_its_own_verdict(house):
    record_seeds(2, [{"gap": 0.5}, {"gap": 0.6}])
    record_seeds(2, [{"gap": 0.01}, {"gap": 0.02}, {"gap": 0.015}], profile="deep")
    for profile in ("course", "deep"):
        path = house / f"data/results/{profile}/finding_02.json"
        assert json.loads(path.read_text())["config"]["profile"] == profile
    assert verdict(2) == "not shown (course, 2 seeds); shown (deep, 3 seeds)"
    board = findings.show()
    for said in ("+0.55 ± 0.64 (course, 2 seeds)", "+0.015 ± 0.012 (deep, 3 seeds)"):
        assert said in repr(board).replace("\n", " ") and said in board._repr_html_()
    assert "course: 0 shown, 1 not.\ndeep: 1 shown, 0 not." in repr(board)
    page = scoreboard.not_shown(board.rows)
    assert "**Shown in deep, not in course (2 seeds):** 2. The scoreboard" in page
    assert "the gap" not in page, "listed, and no more"
    assert "why?   Shown in deep, not in course (2 seeds)" in repr(board)
    assert "course +0.55 ± 0.64, deep +0.015 ± 0.012 nats" in findings.readme_table()
    frame = board.frame().set_index("finding").loc[2]
    assert frame["recorded.deep.seeds"] == 3
    assert frame["recorded.course.mean"] == pytest.approx(0.55)


def test_a_profile_of_ones_own_is_in_the_ledger_and_not_in_the_readme(house):
    record_seeds(2, [{"gap": 0.01}, {"gap": 0.02}])
    own = house / "Mine.yaml"
    own.write_text("extends: course\n")
    findings.record(2, profile=config.load(own), seed=0, gap=0.5)
    findings.keep([2], "Mine", 0)
    (house / "data/results/.stray").mkdir()
    assert verdict(2) == "shown (course, 2 seeds); not shown (Mine, 1 seed)"
    page = scoreboard.not_shown(findings.table())
    assert "Shown in course, not in Mine (1 seed):** 2." in page
    assert "(course, 2 seeds)" in findings.readme_table()
    assert "Mine" not in findings.readme_table()


def test_what_shows_nowhere_has_a_tick_or_none_for_every_profile():
    for profile, gaps in (("course", (0.5, 0.6)), ("deep", (0.01, 0.6))):
        record_seeds(2, [{"gap": gap} for gap in gaps], profile=profile)
    page = scoreboard.not_shown(findings.table())
    assert "Not shown (course, 2 seeds); not shown (deep, 2 seeds)." in page
    assert "- the gap: ✗ +0.55 ± 0.64 (course), ✗ +0.30 ± 3.75 (deep) nats" in page


def test_a_profile_that_lacks_a_measure_gives_no_verdict():
    record_seeds(1, [{"gain": 0.3, "loss": -1.0}])
    [row] = findings.table([1])
    half = claims.Seen(row.seen[0].measure, None, {**row.seen[0].recorded, "deep": 1})
    assert claims.Row(row.claim, (half, row.seen[1]), None).profiles == ("course",)


def test_readme_table_holds_recorded_seeds_only():
    findings.record(1, profile="course", seed=3, gain=0.25, loss=-0.5)
    record_seeds(2, [{"gap": 0.02}, {"gap": 0.04}])
    block = findings.readme_table()
    assert "+0.25" not in block and "not measured" in block
    assert "+0.03 ± 0.13 nats" in block and "✗ not shown (course, 2 seeds)" in block


def test_a_claim_that_does_not_show_says_which_part_and_why(house):
    path = house / "data/findings.yaml"
    path.write_text(
        path.read_text().replace('section: "2", notebook: 03_x,', CLAIM_WITH_A_WHY)
    )
    record_seeds(1, [{"gain": 0.3, "loss": 1.0}, {"gain": 0.31, "loss": 1.0}])
    findings.record(2, profile="course", seed=0, gap=5.0)
    rows = findings.table()
    page = scoreboard.not_shown(rows)
    assert "- the gain: ✓ +0.30" in page and "- the loss: ✗ +1.00" in page
    assert "- the gap: ✗ +5.00 nats, expected abs < 0.1" in page
    assert "Two things were tried." in page
    assert "has not been written down yet" in page  # of the second claim
    assert "why?   Two things were tried." in scoreboard.text(rows)


def test_a_claim_that_shows_or_was_not_measured_explains_nothing(house):
    path = house / "data/findings.yaml"
    path.write_text(
        path.read_text().replace('section: "2", notebook: 03_x,', CLAIM_WITH_A_WHY)
    )
    assert "tried" not in scoreboard.text(findings.table())
    findings.record(1, profile="course", seed=0, gain=0.3, loss=-1.0)
    findings.record(2, profile="course", seed=0, gap=0.0)
    rows = findings.table()
    assert "tried" not in scoreboard.text(rows)
    assert scoreboard.not_shown(rows) == "Every finding that was measured shows."


@pytest.mark.parametrize("bad", ["", "0", "= 0", "> x", "abs > 1"])
def test_expectations_that_cannot_be_read(bad):
    with pytest.raises(ValueError, match="write > x, < x or abs < x"):
        Expectation.parse(bad)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 15, 30, 31, 60, 500])
def test_t_quantiles_leave_two_and_a_half_percent_above(freedom):
    """Integrate Student's density from 0 to the quantile: it must be 0.475."""
    norm = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    norm /= math.sqrt(freedom * math.pi)
    n, end = 20_000, t_975(freedom)
    middles = ((i + 0.5) * end / n for i in range(n))
    area = sum((1 + x * x / freedom) ** (-(freedom + 1) / 2) for x in middles)
    # the table has three decimals
    assert norm * area * end / n == pytest.approx(0.475, abs=4e-5)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = random.Random(0)
    hits = 0
    for _ in range(2000):
        interval = t_interval([rng.gauss(1, 2) for _ in range(5)])
        hits += interval.low < 1 < interval.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_the_papers_claims_are_all_there(monkeypatch):
    root = Path(__file__).resolve().parents[1]
    found = claims.read(root / "data/findings.yaml")
    assert list(found) == list(range(1, 29))
    for claim in found.values():
        assert claim.says.endswith(".") and claim.paper.endswith(".")
        assert len({m.name for m in claim.measures}) == len(claim.measures)
        for measure in claim.measures:  # a claim that nothing could contradict is none
            expectation = Expectation.parse(measure.expect)
            assert expectation.low > -math.inf or expectation.high < math.inf
            assert measure.name.isidentifier()


def test_the_readme_shows_the_recorded_findings(monkeypatch):
    root = Path(__file__).resolve().parents[1]
    monkeypatch.setattr(stages, "ROOT", root)
    readme = (root / "README.md").read_text("utf-8")
    assert findings.readme_table() in readme, (
        "the README's findings are out of date: run `cria findings --readme`"
    )


def test_small_numbers_keep_their_digits():
    assert intervals.Interval(1, 0.5, 3).low == 0.5
    assert scoreboard.number(0.00123) == "+0.0012"
    assert scoreboard.number(-12.345) == "−12.35"
    assert scoreboard.number(0) == "0"
