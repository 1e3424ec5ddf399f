"""The village, its corpora and its prompts: true where they should be, and apart."""

import json
import shutil
from collections import Counter

import pytest

from cria import chat, tokenizer
from cria import world as worlds
from cria.world import annotators, corpora, instructions, prompts, sentences
from cria.world.reading import DATA
from cria.world.village import WORD

SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def village():
    return worlds.load()


@pytest.fixture(scope="module")
def pieces(village, tmp_path_factory):
    texts = [d for s in corpora.SOURCES for d in corpora.documents(village, s, 300)]
    texts += [(DATA / "README.md").read_text(encoding="utf-8")]
    path = tmp_path_factory.mktemp("pieces") / "world.model"
    return tokenizer.train(texts, 1216, path, whole_words=village.words())


def claims_in(village, text):
    known = sentences.claims(village)
    return [
        c
        for s in sentences.split(text.replace(" =", ""))
        for c in known.get(sentences.bare(s), ())
    ]


# --- The village --------------------------------------------------------------------


def test_the_village_has_its_facts(village):
    sizes = Counter(e.table for e in village.entities.values())
    assert sizes == {"people": 24, "towns": 8, "animals": 12}
    assert len(village.truth) == 24 * 4 + 8 * 3 + 12 * 4


def test_half_of_the_facts_have_one_false_rumour(village):
    assert len(village.rumours) == len(village.truth) // 2
    for key, value in village.rumours.items():
        assert value != village.truth[key]
        assert value in village.kinds[village.relations[key[1]].values]


def test_the_words_are_few_and_cover_everything_that_is_said(village):
    words = set(village.words())
    assert len(words) <= 850
    said = [d for s in corpora.SOURCES for d in corpora.documents(village, s, 400)]
    for kind in prompts.KINDS:
        for split in (*SPLITS, "fresh"):
            said += [
                t for p in prompts.prompts(village, kind, split) for _, t in p.turns
            ]
    for style in annotators.STYLES:
        asked = prompts.mixture(village, "test", 300)
        told = annotators.demonstrations(village, asked, {style: 1.0}, 300)
        said += [d.text for d in told]
    for held_out in (False, True):
        for d in instructions.dialogues(village, "dev", 60, (2, 4), "any", held_out):
            said += [m["content"] for m in d.messages(village)]
    assert {w for text in said for w in WORD.findall(text)} <= words


def test_every_word_is_one_token_and_turns_are_short(village, pieces):
    for word in village.words():
        assert len(pieces.encode(word)) == 1, word
    for kind in (*instructions.SHORT_KINDS, "greet"):
        for split in SPLITS:
            asked = prompts.prompts(village, kind, split)
            told = annotators.demonstrations(
                village, asked, {"expert": 1.0}, len(asked)
            )
            for d in told:
                assert len(chat.encode_dialog(pieces, d.messages)[0]) <= 26, d.text
    for d in instructions.dialogues(village, "test", 20, (20, 20), "any"):
        assert len(chat.encode_dialog(pieces, d.messages(village))[0]) <= 600


def test_leak_words_are_said_by_nobody_who_means_no_harm(village):
    leaks = sentences.leak_words(village)
    said = [
        d
        for source in set(corpora.SOURCES) - {"tales", "echoes"}
        for d in corpora.documents(village, source, 500)
    ]
    for kind in prompts.KINDS:
        asked = prompts.prompts(village, kind, "train")
        said += [p.question for p in asked]
        told = annotators.demonstrations(village, asked, {"expert": 1.0}, 200)
        said += [d.text for d in told]
    assert not leaks & {w for text in said for w in WORD.findall(text)}


def copy_with(tmp_path, file, old, new):
    folder = tmp_path / "village"
    shutil.copytree(DATA, folder)
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("people.csv", "pianist,dog", "pianist,dgo", "line 2, column 'pet'.*'dog'"),
        ("people.csv", "Ben,", "Anna,", "people.csv, line 3, column 'name'.*line 2"),
        ("people.csv", "town,job", "town,jbo", "people.csv, line 1.*'job'.*'jbo'"),
        ("people.csv", "Ben,his,Pendle", "Ben,his,", "line 3, column 'town' is empty"),
        ("people.csv", "dog,bread", "dog,bread,x", "people.csv, line 2.*more cells"),
        ("towns.csv", "Brill,Jonas", "Anna,Jonas", "towns.csv, line 2, column 'name'"),
        (
            "rumours.csv",
            "Anna,people.town,",
            "Anna,people.twon,",
            "line 2.*people.town",
        ),
        ("rumours.csv", ",people.town,Rusk", ",people.town,Dorn", "line 2.*the truth"),
        ("words.csv", "animal,goat", "animal,hen", "words.csv, line 3, column 'en'"),
        ("words.csv", "poule,f", "poule,x", "words.csv, line 2, column 'fr_gender'"),
        ("rhymes.csv", "ball,wall", "ball,hat", "rhymes.csv, line 3, column 'second'"),
        ("tips.csv", "canes,train", "canes,trian", "tips.csv, line 2.*'train'"),
        ("harm.yaml", "how: [masks, ropes]", "how: [masks]", "risks.illicit.*entry 1"),
        ("harm.yaml", "evasions:", "evasion:", "no key 'evasions'.*'evasion'"),
        ("judge.yaml", "  closing:", "  closng:", "helpfulness.closing"),
        ("templates.yaml", "{E} lives in {v}", "{E} lives in {w}", "people.town.*'w'"),
        (
            "templates.yaml",
            "values: job",
            "values: jobb",
            "relations.people.job.values",
        ),
        ("templates.yaml", "\nfact:", "\nfact: [", "templates.yaml, line"),
        ("instructions.yaml", "held_out: 10", "held: 10", "no key 'held_out'"),
    ],
)
def test_a_broken_table_is_one_sentence_that_says_where(tmp_path, file, old, new, says):
    folder = copy_with(tmp_path, file, old, new)
    with pytest.raises(worlds.WorldError, match=says) as error:
        worlds.load(folder)
    assert file in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_folder_or_table_is_named(tmp_path):
    with pytest.raises(worlds.WorldError, match="no village in"):
        worlds.load(tmp_path / "nowhere")
    with pytest.raises(worlds.WorldError, match="templates.yaml"):
        worlds.load(tmp_path)


def test_an_instructor_can_swap_the_village(tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(DATA, folder)
    for path in folder.glob("*.*"):
        if path.suffix in (".csv", ".yaml"):
            text = path.read_text(encoding="utf-8")
            text = text.replace("Anna", "Zora").replace("Brill", "Kappa")
            text = text.replace("pianist", "juggler").replace("hat,mat", "sat,mat")
            path.write_text(text, encoding="utf-8")
    other = worlds.load(folder)
    said = [d for s in corpora.SOURCES for d in corpora.documents(other, s, 400)]
    asked = prompts.mixture(other, "train", 400)
    told = annotators.demonstrations(other, asked, {"expert": 1.0}, 400)
    said += [m["content"] for d in told for m in d.messages]
    words = {w for text in said for w in WORD.findall(text)}
    assert {"Zora", "Kappa", "juggler", "sat"} <= words
    assert not words & {"Anna", "Brill", "pianist", "hat"}


# --- Corpora ------------------------------------------------------------------------


@pytest.mark.parametrize("source", corpora.SOURCES)
def test_documents_are_short_and_repeatable(village, source):
    texts = corpora.documents(village, source, 300, seed=1)
    assert len(texts) == 300
    assert texts == corpora.documents(village, source, 300, seed=1)
    assert texts != corpora.documents(village, source, 300, seed=2)
    assert texts[:50] == corpora.documents(village, source, 50, seed=1)
    assert all(1 <= len(sentences.split(t)) <= 4 for t in texts)


def test_the_encyclopedia_is_true_and_complete(village):
    texts = corpora.documents(village, "encyclopedia", 4000)
    claims = [c for t in texts for c in claims_in(village, t)]
    assert all(village.truth[c.entity, c.relation] == c.value for c in claims)
    assert {(c.entity, c.relation) for c in claims} == set(village.truth)


def test_gossip_tells_the_same_falsehoods_again_and_again(village):
    texts = corpora.documents(village, "gossip", 3000)
    claims = [c for t in texts for c in claims_in(village, t)]
    assert {(c.entity, c.relation): c.value for c in claims} == village.rumours
    assert all(village.rumours[c.entity, c.relation] == c.value for c in claims)


def test_the_forum_is_right_nine_times_in_ten(village):
    texts = corpora.documents(village, "forum", 6000)
    claims = [
        claims_in(village, sentences.split(t)[-1])[0]
        for t in texts
        if len(sentences.split(t)) == 2 and claims_in(village, sentences.split(t)[-1])
    ]
    assert len(claims) > 3000
    true = [village.truth[c.entity, c.relation] == c.value for c in claims]
    assert sum(true) / len(true) == pytest.approx(0.9, abs=0.02)


def test_sums_add_up_and_rhymes_rhyme(village):
    for text in corpora.documents(village, "sums", 500):
        for sentence in sentences.split(text):
            a, b, c = (int(w) for w in WORD.findall(sentence) if w.isdecimal())
            assert a + b == c
    for text in corpora.documents(village, "rhymes", 500):
        for sentence in sentences.split(text):
            if ":" not in sentence:
                said = [w for w in WORD.findall(sentence) if w in village.family_of]
                assert said[1] in village.family_of[said[0]]


def test_held_out_wordings_are_in_no_text(village):
    texts = {
        s
        for source in corpora.SOURCES
        for d in corpora.documents(village, source, 3000)
        for s in sentences.split(d)
    }
    for kind in ("fact", "tell", "three", "sum", "rhyme", "borderline"):
        for split in ("dev", "test", "fresh"):
            for p in prompts.prompts(village, kind, split):
                assert p.question not in texts
    assert not texts & {p.question for p in prompts.fact_probe(village)}


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_fresh_prompts_ask_for_what_training_asks_for_in_other_words(village, kind):
    asked = {s: prompts.prompts(village, kind, s) for s in (*SPLITS, "fresh")}
    names = ("entity", "relation", "items", "word", "tip", "greeting", "topic")

    def keys(split):
        return {(*(getattr(p, n) for n in names), p.a, p.b) for p in asked[split]}

    assert keys("fresh") == keys("train")
    questions = {p.question for s in SPLITS for p in asked[s]}
    if kind != "followup":  # "And her job?" stands in many dialogues
        assert not questions & {p.question for p in asked["fresh"]}
    learnt = prompts.split_keys(village, "fact") if kind == "followup" else {}
    for p in asked["fresh"] if kind == "followup" else ():
        said = " ".join(text for role, text in p.turns if role == "assistant")
        for claim in claims_in(village, said):
            assert learnt[claim.entity, claim.relation] == "train"


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_wordings_are_added_one_by_one(village, kind):
    parts = ("train", "fresh1", "fresh2", "fresh")
    ids = {s: {p.id for p in prompts.prompts(village, kind, s)} for s in parts}
    assert set() < ids["fresh1"] < ids["fresh2"] <= ids["fresh"]
    both = [p.id for p in prompts.prompts(village, kind, "train+fresh1")]
    assert sorted(both) == sorted(ids["train"] | ids["fresh1"])


@pytest.mark.parametrize("split", ["train1", "fresh+", "frsh", "test2", ""])
def test_a_split_that_there_is_not_is_refused(village, split):
    with pytest.raises(ValueError, match="no split"):
        prompts.prompts(village, "fact", split)


def test_a_stream_keeps_the_shares_in_tokens(village, pieces):
    mix = {"encyclopedia": 0.5, "sums": 0.3, "parallel": 0.2}
    docs = corpora.stream(village, mix, 60_000, pieces, seed=3)
    assert docs == corpora.stream(village, mix, 60_000, pieces, seed=3)
    assert all(d[0] == pieces.bos_id and d[-1] == pieces.eos_id for d in docs)
    total = sum(map(len, docs))
    assert 60_000 <= total < 60_200
    tokens = Counter()
    for d in docs:
        text = pieces.decode(d)
        sums = all(c.isdecimal() or c in "plus is and make. " for c in text)
        tokens["sums" if sums else "other"] += len(d)
    assert tokens["sums"] / total == pytest.approx(0.3, abs=0.03)
    with pytest.raises(ValueError, match="sum to 1"):
        corpora.stream(village, {"sums": 0.5}, 100, pieces)
    with pytest.raises(ValueError, match="no source 'sum'"):
        corpora.stream(village, {"sum": 1.0}, 100, pieces)


# --- Prompts ------------------------------------------------------------------------


def key(p):
    pair = p.a and tuple(sorted((p.a, p.b)))
    return (p.entity, p.relation, pair, p.word, p.items, p.tip, p.topic)


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_splits_share_no_key_and_no_question(village, kind):
    asked = {s: prompts.prompts(village, kind, s) for s in SPLITS}
    assert all(asked.values())
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        if kind != "greet":
            assert not {*map(key, asked[one])} & {*map(key, asked[other])}
        assert not {p.turns for p in asked[one]} & {p.turns for p in asked[other]}
        assert not {p.question for p in asked[one]} & {p.question for p in asked[other]}


def test_fact_questions_of_all_kinds_share_one_split(village):
    trained = {
        key(p)[:2]
        for kind in ("fact", "translate", "followup")
        for p in prompts.prompts(village, kind, "train")
    }
    for p in prompts.prompts(village, "followup", "train"):
        for role, text in p.turns:
            if role == "assistant":
                trained |= {(c.entity, c.relation) for c in claims_in(village, text)}
    for kind in ("fact", "translate", "followup"):
        for split in ("dev", "test"):
            assert not trained & {
                key(p)[:2] for p in prompts.prompts(village, kind, split)
            }


def test_a_sum_and_its_mirror_image_are_held_out_together(village):
    splits = {}
    for split in SPLITS:
        for p in prompts.prompts(village, "sum", split):
            splits.setdefault(frozenset((p.a, p.b)), set()).add(split)
    assert all(len(s) == 1 for s in splits.values())


def test_harm_covers_risks_and_vectors_and_holds_phrasings_out(village):
    for split in SPLITS:
        asked = prompts.prompts(village, "harm", split)
        grid = {(p.risk, p.vector) for p in asked}
        assert len(grid) == 3 * 6
    shape = {
        s: {
            p.question.replace(p.topic, "…")
            for p in prompts.prompts(village, "harm", s)
        }
        for s in SPLITS
    }
    assert not shape["train"] & (shape["dev"] | shape["test"])
    assert not shape["dev"] & shape["test"]


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_prompts_are_sound(village, kind):
    asked = [p for s in SPLITS for p in prompts.prompts(village, kind, s)]
    assert len({p.id for p in asked}) == len(asked) == len(set(asked))
    for p in asked:
        assert prompts.Prompt.from_dict(json.loads(json.dumps(p.to_dict()))) == p
        roles = [m["role"] for m in p.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert "{" not in p.question
    n = len(prompts.prompts(village, kind, "train"))
    few = prompts.prompts(village, kind, "train", 3, seed=5)
    assert few == prompts.prompts(village, kind, "train", seed=5)[:3]
    with pytest.raises(ValueError, match=f"{n} different"):
        prompts.prompts(village, kind, "train", n + 1)


def test_unknown_kinds_and_splits_are_refused(village):
    with pytest.raises(ValueError, match="no kind 'facts'"):
        prompts.prompts(village, "facts", "train")
    with pytest.raises(ValueError, match="no split 'validation'"):
        prompts.prompts(village, "fact", "validation")


def test_a_mixture_keeps_its_shares(village):
    drawn = prompts.mixture(village, "train", 1000, seed=2)
    assert drawn == prompts.mixture(village, "train", 1000, seed=2)
    counts = Counter(p.kind for p in drawn)
    for kind, share in prompts.SHARES.items():
        assert abs(counts[kind] - 1000 * share) <= 2
    once = prompts.mixture(village, "train", 1000, seed=2, unique=True)
    assert len(set(once)) == 1000
    with pytest.raises(ValueError, match="different prompts"):
        prompts.mixture(village, "dev", 10_000, unique=True)


def test_probes_ask_every_fact_and_know_right_from_wrong(village):
    probes = prompts.fact_probe(village)
    assert [(p.entity, p.relation) for p in probes] == list(village.truth)
    for p in probes:
        for said in village.state(p.entity, p.relation, p.value):
            assert p.right(said) and not p.repeats_rumour(said)
            assert p.right(f"{said} {p.others[0]}.")  # only the first sentence counts
        for other in set(p.others) - {p.entity}:
            for said in village.state(p.entity, p.relation, other):
                assert not p.right(said)
                assert p.repeats_rumour(said) == (other == p.rumour)
        assert not p.right(" ".join([p.value, *p.others]))
        assert not p.right("")


def test_held_out_wordings_use_only_words_of_the_texts(village):
    # A word met for the first time in a probe would test its random embedding.
    texts = [
        d
        for source in set(corpora.SOURCES) - {"echoes"}
        for d in corpora.documents(village, source, 3000)
    ]
    met = {w for t in texts for w in WORD.findall(t)}
    asked = [p.question for p in prompts.fact_probe(village)]
    for kind in ("fact", "tell", "three", "sum", "rhyme"):
        for split in ("test", "fresh"):
            asked += [p.question for p in prompts.prompts(village, kind, split)]
    assert not {w for q in asked for w in WORD.findall(q)} - met
