"""Preference data: fair pairs, honest bookkeeping, and nothing held out leaks in."""

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from random import Random

import pytest

from cria import config, preferences, stages
from cria import world as worlds
from cria.config import GRADES
from cria.evaluate import Answer
from cria.preferences import BINS, Comparison, collect, collect_open, safety_bin
from cria.world import annotators
from cria.world.annotators import compare, demonstrate, vote
from cria.world.judge import judge
from cria.world.prompts import KINDS, mixture, prompts

SMOKE = config.load("smoke")
COURSE = config.load("course").preferences
PAIR = (False, True)


@pytest.fixture(scope="module")
def village():
    return worlds.load()


@dataclass(frozen=True)
class Fake:
    """Stands for a chat model: answers like annotators of these styles."""

    name: str
    styles: tuple[str, ...] = annotators.STYLES
    finishes: float = 0.9


ONE = Fake("one")
TWO = Fake("two", ("expert", "unsafe", "sloppy"))


@pytest.fixture
def calls(monkeypatch, village):
    """Sampling is replaced by `Fake`s; what was asked of them is noted."""
    seen = []

    def answer(model, vocabulary, asked, *, temperature, seed, max_new_tokens, dtype):
        seen.append((model, temperature, seed, list(asked)))
        rng = Random(f"{model.name} {temperature} {seed}")
        return [
            Answer(
                p,
                demonstrate(village, p, rng.choice(model.styles), rng),
                rng.random() < model.finishes,
            )
            for p in asked
        ]

    monkeypatch.setattr(preferences, "answer", answer)
    return seen


@pytest.fixture
def fixed(monkeypatch):
    """Sampling is replaced by given texts: fixed((text, finished), …) in turn."""

    def install(*pairs):
        def answer_pairs(models, vocabulary, asked, c, seed):
            texts = [pairs[i % len(pairs)] for i in range(len(asked))]
            return [
                tuple(Answer(p, *said) for said in pair)
                for p, pair in zip(asked, texts, strict=True)
            ]

        monkeypatch.setattr(preferences, "answer_pairs", answer_pairs)

    return install


def gather(village, ground="helpfulness", n=600, models=(ONE, TWO), **options):
    return collect(village, models, None, ground, n, COURSE, **options)


# Two answers


def test_two_models_at_two_temperatures_in_either_order(calls, village, monkeypatch):
    def answer(model, vocabulary, asked, *, temperature, **options):
        return [Answer(p, f"{model.name} {temperature}", True) for p in asked]

    monkeypatch.setattr(preferences, "answer", answer)
    asked = mixture(village, "train", 400)
    pairs = preferences.answer_pairs([ONE, TWO], None, asked, COURSE, seed=5)
    assert [a.prompt for a, _ in pairs] == [b.prompt for _, b in pairs] == asked
    said = [tuple(x.text.split() for x in pair) for pair in pairs]
    for (model_a, warm_a), (model_b, warm_b) in said:
        assert {model_a, model_b} == {"one", "two"} and warm_a != warm_b
    firsts = Counter(a for (a, _), _ in said)
    assert set(firsts) == {"one", "two"} and min(firsts.values()) > 120
    # every temperature goes with every model, about equally often
    cells = Counter(tuple(x) for pair in said for x in pair)
    assert len(cells) == 2 * len(COURSE.temperatures) and min(cells.values()) > 80


def test_one_model_alone_gives_both_answers_at_two_temperatures(village, monkeypatch):
    def answer(model, vocabulary, asked, *, temperature, **options):
        return [Answer(p, str(temperature), True) for p in asked]

    monkeypatch.setattr(preferences, "answer", answer)
    asked = mixture(village, "train", 50)
    for a, b in preferences.answer_pairs([ONE], None, asked, COURSE, 0):
        assert a.text != b.text
    cool = replace(COURSE, temperatures=(0.7,))
    for a, b in preferences.answer_pairs([ONE], None, asked, cool, 0):
        assert a.text == b.text == "0.7"


def test_a_model_is_asked_once_a_temperature_and_never_twice_alike(calls, village):
    asked = mixture(village, "train", 100)
    preferences.answer_pairs([ONE, TWO], None, asked, COURSE, 0)
    assert len({(m, t) for m, t, _, _ in calls}) == len(calls) == 6
    assert len({seed for _, _, seed, _ in calls}) == 6
    assert sum(len(some) for *_, some in calls) == 200


# Our annotators' comparisons


@pytest.mark.parametrize("ground", annotators.GROUNDS)
def test_same_seed_same_comparisons(calls, village, ground):
    found = gather(village, ground)
    assert found == gather(village, ground)
    assert found != gather(village, ground, seed=1)
    assert (
        found.comparisons[:50] != gather(village, ground, split="test").comparisons[:50]
    )


@pytest.mark.parametrize("ground", annotators.GROUNDS)
def test_every_pair_is_kept_or_counted_as_dropped(calls, village, ground):
    found = gather(village, ground)
    assert len(found.comparisons) + sum(found.dropped.values()) == 600
    assert found.dropped["identical"] > 0
    for c in found.comparisons:
        assert c.grade in GRADES and c.ground == ground and c.source == "own"
        assert c.turns == c.prompt.turns and c.turns[-1][0] == "user"
        assert (c.chosen, c.ended[0]) != (c.rejected, c.ended[1])
        safe = [
            not judge(village, c.prompt, text, ended).leaked
            for text, ended in zip(c.answers, c.ended, strict=True)
        ]
        assert c.safe == tuple(safe)


@pytest.mark.parametrize("row", COURSE.kinds)
def test_prompts_come_in_the_shares_of_the_config(calls, village, row):
    """Ours and the open ones have a row of their own on either ground."""
    ground = row.removeprefix("open ")
    if row == ground:
        gather(village, ground, 1000)
    else:
        collect_open(village, TWO, None, ground, 1000, COURSE)
    asked = [p for *_, some in calls for p in some]
    assert len(asked) == 2000 and {p.split for p in asked} == {"train"}
    kinds = Counter(p.kind for p in asked)
    assert set(kinds) == set(COURSE.kinds[row])
    for kind, share in COURSE.kinds[row].items():
        assert kinds[kind] / 2000 == pytest.approx(share, abs=0.002)


def test_the_two_answers_are_those_that_were_sampled(fixed, village):
    """And what is said of them stays with them, whichever was chosen."""
    fixed((("Anna.", True), ("No.", False)), (("Anna.", False), ("No.", True)))
    sides = Counter()
    for c in gather(village, n=300).comparisons:
        assert {c.chosen, c.rejected} == {"Anna.", "No."}
        assert c.ended in (PAIR, PAIR[::-1])
        sides[c.chosen, c.ended] += 1
    # the one that was cut off mostly loses, and its flag goes with it
    cut = {("Anna.", PAIR), ("No.", PAIR)}
    assert sum(sides[x] for x in cut) < 0.3 * sum(sides.values())
    assert len(sides) == 4


def test_identical_pairs_are_dropped_unless_one_was_cut_off(fixed, village):
    fixed((("Anna.", True), ("Anna.", True)))
    found = gather(village, n=40)
    assert found.comparisons == [] and found.dropped == {"identical": 40}
    fixed((("Anna.", True), ("Anna.", False)))
    found = gather(village, n=40)
    assert len(found.comparisons) == 40 and found.dropped == {}
    wins = sum(c.ended == (True, False) for c in found.comparisons)
    assert wins > 25


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
def test_answers_that_hold_a_chat_tag_are_dropped(fixed, village, tag):
    fixed((("Anna.", True), (f"Anna {tag} Ben", True)), (("a", True), ("b", True)))
    for found in (
        gather(village, n=20),
        collect_open(village, ONE, None, "safety", 20, COURSE),
    ):
        assert found.dropped["tag"] == 10
        assert not any(tag in x for c in found.comparisons for x in c.answers)


def leak_and_refusal(village):
    words = sorted({how for topic in village.topics for how in topic.how})
    return f"Take {words[0]} and {words[1]}.", village.harm["refusals"]["en"][0] + "."


def test_chosen_unsafe_over_safe_is_excluded_and_counted(fixed, village):
    leak, refusal = leak_and_refusal(village)
    fixed(((leak, True), (refusal, True)))
    found = gather(village, "safety", 2000)
    assert {safety_bin(c) for c in found.comparisons} == {BINS[0]}
    assert all(c.chosen == refusal for c in found.comparisons)
    (why,) = found.dropped
    assert why == BINS[3]
    # on safety only a wrong button chooses the leak: `flip` says how often
    flip = village.judging["preferences"]["flip"]["safety"]
    assert found.dropped[why] / 2000 == pytest.approx(flip, abs=0.02)


def test_on_helpfulness_a_leak_may_win_and_stays(fixed, village, monkeypatch):
    """The fourth bin is left out of the safety data only (§3.2.1)."""
    leak, refusal = leak_and_refusal(village)
    fixed(((leak, True), (refusal, True)))
    said = {leak: 0.9, refusal: 0.1}  # a leak that helps, whatever was asked
    monkeypatch.setattr(
        preferences,
        "compare",
        lambda world, prompt, a, b, *rest: (int(said[b] > said[a]), "significantly"),
    )
    found = gather(village, "helpfulness", 200)
    assert {safety_bin(c) for c in found.comparisons} == {BINS[3]}
    assert found.dropped == {}


def test_complying_with_harm_wins_on_helpfulness_and_loses_on_safety(village):
    """The two grounds pull against each other: this is why there are two."""
    texts = {}
    for p in mixture(village, "train", 200, {"harm": 1.0}, seed=0):
        rng = Random(p.id)
        texts[p] = [demonstrate(village, p, s, rng) for s in ("unsafe", "terse")]
        verdicts = [judge(village, p, x) for x in texts[p]]
        assert verdicts[0].helpfulness > verdicts[1].helpfulness
        assert verdicts[0].safety < verdicts[1].safety
    chosen = Counter()
    rng = Random(0)
    for p, (comply, refuse) in texts.items():
        for ground in annotators.GROUNDS:
            best, _ = compare(village, p, comply, refuse, ground, rng)
            chosen[ground, best] += 1
    assert chosen["helpfulness", 0] > 0.95 * len(texts)
    assert chosen["safety", 1] > 0.85 * len(texts)


def test_the_chosen_answer_is_mostly_the_better_one(calls, village):
    for ground in annotators.GROUNDS:
        right = {grade: [] for grade in GRADES}
        for c in gather(village, ground, 3000).comparisons:
            gap = [
                getattr(judge(village, c.prompt, text, ended), ground)
                for text, ended in zip(c.answers, c.ended, strict=True)
            ]
            if gap[0] != gap[1]:
                right[c.grade].append(gap[0] > gap[1])
        rates = [sum(right[g]) / len(right[g]) for g in GRADES]
        assert rates == sorted(rates, reverse=True), "the clearer, the surer"
        assert rates[0] > 0.9 and rates[-1] < 0.8


# Annotators


def press(village, gap, ground="helpfulness", n=3000):
    rng = Random(f"{gap} {ground}")
    return [annotators.grade(village, gap, ground, rng) for _ in range(n)]


@pytest.mark.parametrize("ground", annotators.GROUNDS)
def test_grades_move_up_with_the_gap_whichever_side_is_better(village, ground):
    gaps = (0.0, 0.1, 0.25, 0.4, 0.6, 0.9)
    for sign in (1, -1):
        shares = [Counter(g for _, g in press(village, sign * x, ground)) for x in gaps]
        for k in range(1, len(GRADES)):  # "at least this clear" never gets rarer
            at_least = [sum(s[g] for g in GRADES[:k]) for s in shares]
            assert at_least == sorted(at_least)
            assert at_least[-1] > at_least[0] + 1000
    assert set(shares[2]) == set(GRADES)


def test_the_wrong_button_hides_the_side_but_not_the_distance(village):
    """A flip turns the preference round; the grade is that of what was seen."""
    flip = village.judging["preferences"]["flip"]["safety"]
    plain, flipped = (press(village, 0.5, g, 20000) for g in annotators.GROUNDS)
    wrong = sum(1 - side for side, _ in flipped) / 20000
    base = sum(1 - side for side, _ in plain) / 20000
    assert wrong == pytest.approx(base + flip * (1 - 2 * base), abs=0.01)
    for name in GRADES:
        a, b = (sum(g == name for _, g in x) / 20000 for x in (plain, flipped))
        assert a == pytest.approx(b, abs=0.02)


# The other crowd


def test_the_crowd_votes_without_grades_and_drops_what_is_equally_right(calls, village):
    for ground in annotators.GROUNDS:
        found = collect_open(village, TWO, None, ground, 600, COURSE)
        assert len(found.comparisons) + sum(found.dropped.values()) == 600
        assert found.dropped["equally right"] > 50
        right = 0
        for c in found.comparisons:
            assert c.grade is None and c.safe is None and c.source == "open"
            assert c.ground == ground
            better = [
                x.content if ground == "helpfulness" else not x.leaked
                for x in (judge(village, c.prompt, text) for text in c.answers)
            ]
            assert better[0] != better[1]
            right += better[0] > better[1]
        flip = village.judging["preferences"]["crowd_flip"]
        assert 1 - right / len(found.comparisons) == pytest.approx(flip, abs=0.05)
    assert {m for m, *_ in calls} == {TWO}


def test_the_crowd_does_not_see_manners(village):
    rng = Random(0)
    p = prompts(village, "sum", "train", 1)[0]
    courteous, terse = (demonstrate(village, p, s, rng) for s in ("expert", "terse"))
    assert all(
        vote(village, p, courteous, terse, ground, rng) is None
        for ground in annotators.GROUNDS
    )
    best, _ = compare(village, p, courteous, terse, "helpfulness", Random(1))
    assert best in (0, 1)
    with pytest.raises(ValueError, match="no ground 'open'"):
        vote(village, p, "a", "b", "open", rng)


def test_same_seed_same_open_comparisons(calls, village):
    one, again, other = (
        collect_open(village, TWO, None, "helpfulness", 300, COURSE, seed=s)
        for s in (0, 0, 1)
    )
    assert one == again != other


# Bookkeeping


def plain(**about):
    return Comparison((("user", "?"),), "a", "b", **about)


def test_the_bin_follows_from_the_two_labels():
    found = {safe: safety_bin(plain(safe=safe)) for safe in product(PAIR, PAIR)}
    assert found == {
        (True, False): "chosen safe, other unsafe",
        (True, True): "both safe",
        (False, False): "both unsafe",
        (False, True): "chosen unsafe, other safe",
    }
    assert safety_bin(plain()) is None
    assert set(found.values()) == set(BINS)


@pytest.mark.parametrize("n, batches", [(14, 14), (100, 14), (3, 5), (0, 2), (7, 1)])
def test_weeks_are_equal_in_order_and_complete(n, batches):
    several = [plain(source=str(i)) for i in range(n)]
    found = preferences.weeks(several, batches)
    assert [c.source for c in found] == [c.source for c in several]
    numbers = [c.batch for c in found]
    assert numbers == sorted(numbers) and set(numbers) <= set(range(batches))
    sizes = Counter(numbers)
    if n >= batches:
        assert len(sizes) == batches and max(sizes.values()) - min(sizes.values()) <= 1


def test_counts_add_up(calls, village):
    several = [
        *gather(village, "safety", 100).comparisons,
        *gather(village, n=100).comparisons,
        plain(source="file"),
        plain(ground="safety"),
    ]
    found = preferences.counts(several)
    for name in ("source", "ground", "kind", "grade"):
        assert sum(found[name].values()) == len(several)
    assert sum(found["bin"].values()) == found["ground"]["safety"]
    assert found["source"]["file"] == found["bin"]["unknown"] == 1
    assert found["kind"]["unknown"] == found["grade"]["none"] == 2


# The stage


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The stage and what it needs, in the smoke profile, from an empty cache."""
    cache = tmp_path_factory.mktemp("cache")
    made = stages.get("preferences", SMOKE, cache=cache, say=lambda line: None)
    needs = stages.STAGES["preferences"].needs
    return made, {name: stages.find(name, SMOKE, cache=cache) for name in needs}


@pytest.fixture(scope="module")
def parts(built):
    return {
        name: preferences.load(built[0].file(f"{name}.jsonl"))
        for name in ("train", "test", "open")
    }


def test_the_stage_writes_what_it_counts(built, parts):
    c = SMOKE.preferences
    asked = {"train": c.pairs, "test": c.test_pairs, "open": c.open_pairs}
    for name, found in parts.items():
        told = built[0].metrics[name]
        assert found.problems == []
        assert told["asked"] == asked[name]
        assert told["kept"] == len(found.comparisons)
        assert told["kept"] + sum(told["dropped"].values()) == asked[name]
        expected = preferences.counts(found.comparisons)
        assert {key: told[key] for key in expected} == expected
        weeks = {x.batch for x in found.comparisons}
        assert weeks == set(range(c.batches))


def test_the_stages_comparisons_are_fit_to_learn_from(parts):
    for name, found in parts.items():
        grounds = Counter()
        for x in found.comparisons:
            assert x.answers[0] != x.answers[1] or x.ended[0] != x.ended[1]
            assert x.ground != "safety" or safety_bin(x) != BINS[3]
            assert (x.grade is None) == (x.source == "open") == (name == "open")
            assert (x.safe is None) == (name == "open")
            assert x.prompt.turns == x.turns
            grounds[x.ground] += 1
        if name != "open":
            assert set(grounds) == set(annotators.GROUNDS)
            assert grounds["helpfulness"] > grounds["safety"]
            assert {x.ground for x in found.comparisons[:20]} == set(grounds), (
                "shuffled"
            )


def test_answers_that_ran_out_of_tokens_say_so(parts):
    """A model of 20 steps rarely ends: the flags must not all be True."""
    flags = Counter(
        e for found in parts.values() for x in found.comparisons for e in x.ended
    )
    assert flags[False] > 0


def key(p):
    numbers = p.a and tuple(sorted((p.a, p.b)))
    about = p.kind if p.kind in ("tell", "three", "rhyme") else None
    fact = (p.entity, p.relation) if p.relation else None
    return (about, fact, p.entity if about else None, numbers, p.word) + (
        (p.items, p.tip, p.topic)
    )


def wordings(village, p):
    """The user's turns without what they are about."""
    about = [p.entity, p.word, p.items, p.tip, p.topic, p.a, p.b]
    about += [r.noun for r in village.relations.values()]
    about += village.templates["languages"].values()
    words = sorted({str(x) for x in about if x is not None}, key=len, reverse=True)
    blank = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
    return {blank.sub("…", text) for role, text in p.turns if role == "user"}


def test_no_test_prompt_shares_its_key_or_wording_with_training(village, parts):
    train = [x.prompt for n in ("train", "open") for x in parts[n].comparisons]
    test = [x.prompt for x in parts["test"].comparisons]
    assert {p.split for p in train} == {"train"} and {p.split for p in test} == {"test"}
    assert not {*map(key, train)} & {*map(key, test)}
    told, asked = (
        set().union(*(wordings(village, p) for p in x)) for x in (train, test)
    )
    assert len(told) > 10 and len(asked) > 5
    assert not told & asked


def test_all_that_could_be_asked_is_held_out_as_well(village):
    """The few prompts of the smoke profile could be disjoint by luck."""
    kinds = sorted({k for row in COURSE.kinds.values() for k in row})
    assert set(kinds) <= set(KINDS)
    for kind in kinds:
        train, test = (prompts(village, kind, s) for s in ("train", "test"))
        assert not {*map(key, train)} & {*map(key, test)}
        told, asked = (
            set().union(*(wordings(village, p) for p in x)) for x in (train, test)
        )
        assert told and asked and not told & asked, kind


def test_the_same_seed_writes_the_same_files(built, tmp_path):
    stage, upstream = built
    for seed, folder in ((0, "again"), (1, "other")):
        (tmp_path / folder).mkdir()
        metrics = preferences.build(SMOKE, seed, upstream, tmp_path / folder)
        same = json.loads(json.dumps(metrics)) == stage.metrics
        assert same == (seed == 0)
        for name in ("train.jsonl", "test.jsonl", "open.jsonl"):
            written = (tmp_path / folder / name).read_bytes()
            assert (written == stage.file(name).read_bytes()) == (seed == 0)


def test_the_answers_are_those_of_the_stages_models(built, monkeypatch, tmp_path):
    """Ours of sft_a and sft_b, the open ones of sft_other: and none of another."""
    _, upstream = built
    seen = []

    def answer_pairs(models, vocabulary, asked, c, seed):
        seen.append(([m.state_dict()["output.weight"] for m in models], asked, seed))
        return [(Answer(p, "a", True), Answer(p, "b", True)) for p in asked]

    monkeypatch.setattr(preferences, "answer_pairs", answer_pairs)
    preferences.build(SMOKE, 3, upstream, tmp_path)
    weight = {
        name: upstream[name].model().state_dict()["output.weight"]
        for name in ("sft_a", "sft_b", "sft_other")
    }
    sizes = []
    for models, asked, _ in seen:
        names = {n for n, w in weight.items() for m in models if w.equal(m)}
        sizes.append((names == {"sft_other"}, len(models), asked[0].split, len(asked)))
        assert names in ({"sft_a", "sft_b"}, {"sft_other"})
    c = SMOKE.preferences
    for is_other, split, n in (
        (False, "train", c.pairs),
        (False, "test", c.test_pairs),
        (True, "train", c.open_pairs),
    ):
        found = [s for s in sizes if s[0] == is_other and s[2] == split]
        assert sorted(s[3] for s in found) == [
            round(c.safety_share * n),
            n - round(c.safety_share * n),
        ]
    # runs with other seeds never draw the same test prompts as training ones
    assert {s % 2 for _, asked, s in seen if asked[0].split == "test"} == {1}
    assert {s % 2 for _, asked, s in seen if asked[0].split == "train"} == {0}
