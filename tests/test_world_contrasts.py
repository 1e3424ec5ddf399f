"""Contrasts: one answer is right, one is not, and nothing else tells them apart."""

from collections import Counter

import pytest

from cria import world as worlds
from cria.world import contrasts as module
from cria.world import sentences
from cria.world.contrasts import PROBES, Contrast, contrasts
from cria.world.judge import judge
from cria.world.prompts import prompts
from cria.world.village import WORD

SAME_FORM = [p for p in PROBES if p not in ("relation", "translate", "manners")]
every_probe = pytest.mark.parametrize("probe", PROBES)


@pytest.fixture(scope="module")
def village():
    return worlds.load()


@pytest.fixture(scope="module")
def made(village):
    return {probe: contrasts(village, probe, 300, seed=2) for probe in PROBES}


def parts(village, text):
    """(sentences of the body, closings)."""
    known = sentences.closings(village)
    said = sentences.split(text)
    ends = [s for s in said if sentences.bare(s) in known]
    return [s for s in said if s not in ends], ends


def words(text):
    """The words of a text; an article is the same word before every noun."""
    return ["a" if word == "an" else word for word in WORD.findall(text)]


@every_probe
def test_the_judge_ranks_right_above_wrong(village, made, probe):
    for c in made[probe]:
        right, wrong = (judge(village, c.prompt, x) for x in (c.right, c.wrong))
        assert right.helpfulness > wrong.helpfulness, c
        assert right.content == 1 > wrong.content, c
        assert right.clear and not right.extra and not right.repeats
        assert wrong.clear and not wrong.extra and not wrong.repeats


@every_probe
def test_only_the_content_differs(village, made, probe):
    """The same closing, as many sentences; the judge finds no other reason."""
    for c in made[probe]:
        (right, end), (wrong, other) = (parts(village, x) for x in (c.right, c.wrong))
        assert len(right) == len(wrong) and right != wrong
        if probe == "manners":
            assert not end and len(other) == 1
        else:
            assert end == other and len(end) == 1
            why = []
            for text in (c.right, c.wrong):
                rows = judge(village, c.prompt, text).reasons
                why.append([(r.what, r.points) for r in rows if r.what != "content"])
            assert why[0] == why[1]


@pytest.mark.parametrize("probe", SAME_FORM)
def test_both_answers_have_the_same_form(made, probe):
    """As many words, and most of them in the same places."""
    for c in made[probe]:
        right, wrong = words(c.right), words(c.wrong)
        assert len(right) == len(wrong), c
        different = sum(a != b for a, b in zip(right, wrong, strict=True))
        # who lives elsewhere has another town *and* another name
        assert 1 <= different <= (2 if probe == "entity" else 1), c


def test_the_wrong_answers_are_wrong_in_the_way_that_their_probe_says(village, made):
    known = sentences.claims(village)

    def claims(text):
        return [
            claim
            for s in parts(village, text)[0]
            for claim in known.get(sentences.bare(s), ())
        ]

    for c in made["entity"]:
        wrong = claims(c.wrong)
        assert c.prompt.entity not in {x.entity for x in wrong}
        assert c.prompt.relation in {x.relation for x in wrong}
        assert any(village.truth[x.entity, x.relation] == x.value for x in wrong)
    for c in made["relation"]:
        wrong = claims(c.wrong)
        assert {x.entity for x in wrong} == {c.prompt.entity}
        assert c.prompt.relation not in {x.relation for x in wrong}
        assert any(village.truth[x.entity, x.relation] == x.value for x in wrong)
    for c in made["value"]:
        wrong = [x for x in claims(c.wrong) if x.entity == c.prompt.entity]
        assert c.prompt.relation in {x.relation for x in wrong}
        assert all(
            village.truth[x.entity, x.relation] != x.value
            for x in wrong
            if x.relation == c.prompt.relation
        )
    for c in made["translate"]:
        assert c.prompt.lang != "en"
        assert judge(village, c.prompt, c.right).language == c.prompt.lang
        assert judge(village, c.prompt, c.wrong).language == "en"
    for c in made["sum"]:
        said = [int(w) for w in WORD.findall(c.wrong) if w.isdecimal()]
        near = [n for n in said if n not in (c.prompt.a, c.prompt.b)] or said
        assert min(abs(n - c.prompt.a - c.prompt.b) for n in near) <= 2
        assert str(c.prompt.a + c.prompt.b) in WORD.findall(c.right)
    for probe in ("three", "tell"):
        for c in made[probe]:
            gold = judge(village, c.prompt, c.right).content
            assert judge(village, c.prompt, c.wrong).content < gold


def test_the_place_of_the_error_moves(village, made):
    """A model that looks at one place only cannot win."""
    cut = {"three": words, "tell": lambda text: parts(village, text)[0]}
    for probe, pieces in cut.items():
        places = Counter()
        for c in made[probe]:
            pairs = enumerate(zip(pieces(c.right), pieces(c.wrong), strict=True))
            places[next(i for i, (a, b) in pairs if a != b)] += 1
        assert len(places) >= 3 and max(places.values()) < 0.7 * 300


@every_probe
def test_only_prompts_of_the_split_are_asked(village, made, probe):
    kind = {c.prompt.kind for c in made[probe]}
    assert len(kind) == 1
    expected = probe if probe in ("sum", "rhyme", "three", "tell") else None
    assert expected in (None, *kind)
    for split in ("train", "dev", "test"):
        found = contrasts(village, probe, 20, split)
        assert {c.prompt.split for c in found} == {split}
        assert {c.probe for c in found} == {probe}


def told_in_training(village, prompt):
    return any(p.entity == prompt.entity for p in prompts(village, "tell", "train"))


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("probe", ["value", "entity", "relation", "translate"])
def test_no_training_answer_tells_what_a_held_out_contrast_asks(village, probe, split):
    for c in contrasts(village, probe, 60, split):
        assert not told_in_training(village, c.prompt)
        asked = {
            (p.entity, p.relation)
            for kind in ("fact", "translate", "followup")
            for p in prompts(village, kind, "train")
        }
        assert (c.prompt.entity, c.prompt.relation) not in asked


@every_probe
def test_all_prompts_are_asked_before_one_is_asked_again(village, probe):
    (kind,) = {c.prompt.kind for c in contrasts(village, probe, 3)}
    pool = prompts(village, kind, "test")
    if kind in ("fact", "translate"):  # those that no training answer tells
        pool = [p for p in pool if not told_in_training(village, p)]
    n = len(pool)
    found = contrasts(village, probe, n + 5)
    assert len({c.prompt for c in found[:n]}) == n
    assert [c.prompt for c in found[n:]] == [c.prompt for c in found[:5]]


@every_probe
def test_same_seed_same_contrasts(village, made, probe):
    assert contrasts(village, probe, 300, seed=2) == made[probe]
    assert contrasts(village, probe, 300, seed=3) != made[probe]
    assert contrasts(village, probe, 10, seed=2) == made[probe][:10]


def test_an_unknown_probe_is_refused(village):
    with pytest.raises(ValueError, match="no probe 'grammar'"):
        contrasts(village, "grammar", 3)


def test_two_probes_do_not_hold_the_same_pairs(made):
    pairs = [{(c.right, c.wrong) for c in several} for several in made.values()]
    for i, one in enumerate(pairs):
        for other in pairs[i + 1 :]:
            assert len(one & other) < 0.1 * min(len(one), len(other))
    assert module.Contrast is Contrast
