"""What a reward model reads: pairs as ids, batches of like length, the mixes."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from cria import chat, reward_data, tokenizer, world
from cria.config import GRADES
from cria.evaluate import held_out
from cria.preferences import Comparison, save
from cria.reward_data import (
    Pairs,
    answer_ids,
    batches,
    encode,
    helpfulness_mix,
    safety_mix,
)

VILLAGE = world.load()
ASKED = [{"role": "user", "content": "Hello, who are you?"}]
DIALOGUE = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Good day to you."},
    {"role": "user", "content": "Who are you?"},
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    texts = list(VILLAGE.templates["closings"]["en"]) + [
        turn["content"]
        for prompt in held_out(VILLAGE, per_kind=3)
        for turn in prompt.messages
    ]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return tokenizer.train(texts, 340, path)


def comparison(i=0, **about):
    return Comparison(
        turns=(("user", f"Question {i}?"),),
        chosen=f"The answer is {i}.",
        rejected=f"No {i}",
        **about,
    )


# Comparisons as ids


@pytest.mark.parametrize("messages", [ASKED, DIALOGUE], ids=["one turn", "dialogue"])
def test_prompt_and_answer_are_the_dialogue_and_nothing_else(vocabulary, messages):
    """An answer is exactly what SFT supervises: the loss mask of `cria.chat`."""
    turns = tuple((m["role"], m["content"]) for m in messages)
    pairs = encode(vocabulary, [Comparison(turns, "A llama.", "Go away!")])
    ((prompt, both),) = pairs.rows
    for text, ids in zip(("A llama.", "Go away!"), both, strict=True):
        whole = [*messages, {"role": "assistant", "content": text}]
        dialogue, mask = chat.encode_dialog(vocabulary, whole)
        assert prompt + ids == dialogue
        last = len(dialogue) - len(ids)
        assert all(mask[last:]) and not mask[last - 1]
        assert ids.count(vocabulary.eos_id) == 1 and ids[-1] == vocabulary.eos_id
        assert vocabulary.decode(ids).strip() == text


def test_eos_if_and_only_if_an_answer_ended(vocabulary):
    for ended in ((True, True), (True, False), (False, True), (False, False)):
        ((_, both),) = encode(vocabulary, [comparison(ended=ended)]).rows
        for ids, end, text in zip(both, ended, comparison().answers, strict=True):
            assert (vocabulary.eos_id in ids) is end
            assert vocabulary.decode(ids).strip() == text


def test_an_answer_that_was_cut_off_is_the_start_of_the_whole_one(vocabulary):
    """As a sampler leaves it: no EOS, and no space that only EOS would follow."""
    whole = answer_ids(vocabulary, ASKED, "A llama of the hills, good day.")
    for text in ("A llama of", "A llama of the hills", "A llama of the hills, good"):
        cut = answer_ids(vocabulary, ASKED, text, ended=False)
        assert 0 < len(cut) < len(whole) and whole[: len(cut)] == cut
    assert answer_ids(vocabulary, ASKED, "", ended=False), "a score needs a token"


def test_margins_and_labels_are_those_of_their_pair(vocabulary):
    labels = [None, (True, False), (True, True), (False, False), (False, True)]
    given = [
        comparison(i, grade=grade, safe=safe)
        for i, (grade, safe) in enumerate(zip([None, *GRADES], labels, strict=True))
    ]
    pairs = encode(vocabulary, given, margin=(4, 3, 2, 1))
    assert len(pairs) == 5
    assert pairs.margin.tolist() == [0, 4, 3, 2, 1]
    assert pairs.safe.tolist() == [[-1, -1], [1, 0], [1, 1], [0, 0], [0, 1]]
    assert encode(vocabulary, given).margin.tolist() == [0] * 5


def test_too_long_pairs_go_with_all_that_belongs_to_them(vocabulary):
    given = [comparison(i, grade=g, safe=(True, i == 1)) for i, g in enumerate(GRADES)]
    given[2] = replace(given[2], chosen="A long, long story. " * 30)
    row = (4.0, 3.0, 2.0, 1.0)
    every = encode(vocabulary, given, row)
    sizes = [len(p) + len(a) + len(b) for p, (a, b) in every.rows]
    kept = encode(vocabulary, given, row, max_len=max(sizes[:2] + sizes[3:]))
    others = [0, 1, 3]
    assert kept.rows == [every.rows[i] for i in others]
    assert torch.equal(kept.margin, every.margin[others])
    assert torch.equal(kept.safe, every.safe[others])
    assert len(encode(vocabulary, given, row, max_len=min(sizes) - 1)) == 0


def test_no_comparisons_are_no_pairs(vocabulary):
    pairs = encode(vocabulary, [])
    assert (len(pairs), pairs.margin.shape, pairs.safe.shape) == (0, (0,), (0, 2))


# Batches


def toy_pairs(n, seed=0):
    """Pairs of very unequal length; a pair's number is in its ids, margin, labels."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (n, 3), generator=generator).tolist()
    rows = [
        ([i + 1] * p, ([i + 1] * a, [i + 1] * b)) for i, (p, a, b) in enumerate(lengths)
    ]
    numbers = torch.arange(1, n + 1)
    return Pairs(rows, numbers.float(), numbers[:, None].expand(n, 2))


def numbers(batch):
    """Which pairs a batch holds."""
    return batch["ids"][:, 0].tolist()


def padding(batch):
    return (batch["branches"] < 0).float().mean().item()


def test_an_epoch_holds_every_pair_once():
    batch = batches(toy_pairs(96), 8, seed=0)
    epochs = []
    for epoch in range(3):
        seen = [numbers(batch(epoch * 12 + step)) for step in range(12)]
        assert sorted(sum(seen, [])) == list(range(1, 97))
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]
    assert {frozenset(b) for b in epochs[0]} != {frozenset(b) for b in epochs[1]}


def test_what_is_left_over_changes_every_epoch():
    """50 pairs, 6 batches of 8: two stay out, and not always the same two."""
    batch, missed = batches(toy_pairs(50), 8, seed=0), []
    for epoch in range(20):
        seen = sum((numbers(batch(epoch * 6 + step)) for step in range(6)), [])
        assert len(set(seen)) == len(seen) == 48
        missed.append(frozenset(range(1, 51)) - set(seen))
    assert len(set(missed)) > 10 and len(frozenset.union(*missed)) > 20


def test_a_batch_depends_on_nothing_but_pairs_seed_and_step():
    pairs = toy_pairs(70)
    one, two, other = (batches(pairs, 8, seed) for seed in (3, 3, 4))
    forward = [one(step) for step in range(20)]
    for step in reversed(range(20)):  # in another order, and after other steps
        again = two(step)
        assert all(torch.equal(forward[step][name], again[name]) for name in again)
    assert [numbers(b) for b in forward] != [numbers(other(s)) for s in range(20)]


def test_all_parts_of_a_batch_speak_of_the_same_pairs():
    pairs = toy_pairs(40)
    batch = batches(pairs, 8, seed=1)
    for step in range(5):
        made = batch(step)
        assert made["margin"].tolist() == numbers(made)
        assert made["safe"].tolist() == [[i, i] for i in numbers(made)]
        for i, ids, branches in zip(
            numbers(made), made["ids"], made["branches"], strict=True
        ):
            prompt, both = pairs.rows[i - 1]
            parts = [ids[branches == k].tolist() for k in range(3)]
            assert parts == [prompt, *both], "0 prompt, 1 chosen, 2 rejected"


def test_like_lengths_share_a_batch():
    """Far less padding than in batches drawn at random."""
    pairs = toy_pairs(640)
    sorted_, step = batches(pairs, 8, seed=0), range(80)
    sizes = torch.tensor([len(p) + len(a) + len(b) for p, (a, b) in pairs.rows])
    order = torch.randperm(640, generator=torch.Generator().manual_seed(0))
    at_random = sizes[order].view(80, 8)
    wasted = 1 - at_random.sum() / (8 * at_random.amax(1)).sum()
    mean = sum(padding(sorted_(s)) for s in step) / len(step)
    assert wasted > 0.25 and mean < wasted / 3


def test_short_and_long_batches_alternate():
    """Sorted batches in sorted order would be a curriculum that nobody asked for."""
    batch = batches(toy_pairs(256), 8, seed=0)
    widths = [batch(step)["ids"].shape[1] for step in range(32)]
    rises = sum(b > a for a, b in pairwise(widths))
    assert 8 < rises < 24


@pytest.mark.parametrize("batch_size", [0, -1, 9])
def test_a_batch_needs_as_many_pairs(batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}, .* 8 pairs"):
        batches(toy_pairs(8), batch_size, seed=0)
    assert sorted(numbers(batches(toy_pairs(8), 8, seed=0)(5))) == list(range(1, 9))


# The mixes (§3.2.2)


def named(name, n, ground="helpfulness"):
    return [comparison(i, source=name, ground=ground) for i in range(n)]


def sources(mixed):
    return Counter(c.source for c in mixed)


@pytest.mark.parametrize(("share", "taken"), [(0.5, 100), (0.2, 25), (0.0, 0)])
def test_helpfulness_is_all_of_its_own_and_a_share_of_the_rest(share, taken):
    mixed = helpfulness_mix(
        named("own", 100), named("safety", 300), named("open", 100), share, seed=0
    )
    found = sources(mixed)
    assert found["own"] == 100 and len(mixed) == 100 + taken
    if taken:
        assert taken / len(mixed) == pytest.approx(share)
    assert len({(c.source, c.turns) for c in mixed}) == len(mixed), "none twice"
    if taken == 100:  # uniform over the two together: 3 to 1
        assert found["safety"] == pytest.approx(75, abs=15)


def test_safety_is_all_of_its_own_and_a_tenth_of_helpfulness():
    mixed = safety_mix(named("safety", 90), named("helpful", 400), 0.1, seed=0)
    assert sources(mixed) == {"safety": 90, "helpful": 10}


def test_where_there_are_too_few_all_are_taken():
    mixed = helpfulness_mix(named("own", 100), named("s", 20), named("o", 5), 0.5, 0)
    assert sources(mixed) == {"own": 100, "s": 20, "o": 5}
    assert sources(safety_mix(named("s", 50), [], 0.1, 0)) == {"s": 50}


def test_mixes_are_shuffled_by_their_seed():
    def mix(seed):
        return safety_mix(named("safety", 90), named("helpful", 400), 0.1, seed)

    assert mix(0) == mix(0) != mix(1)
    drawn = [{c.turns for c in mix(s) if c.source == "helpful"} for s in (0, 1)]
    assert drawn[0] != drawn[1]
    where = [i for i, c in enumerate(mix(0)) if c.source == "helpful"]
    assert min(where) < 50 < max(where), "not all at one end"


@pytest.mark.parametrize("share", [1.0, 1.5, -0.1])
def test_a_share_of_all_or_more_is_refused(share):
    with pytest.raises(ValueError, match=f"share is {share}"):
        safety_mix(named("safety", 3), named("helpful", 3), share, seed=0)


def test_the_comparisons_of_a_stage_by_part_and_ground(tmp_path):
    for part, n in (("train", 5), ("open", 3), ("test", 2)):
        several = [*named(part, n), *named(part, 1, "safety")]
        save(several, tmp_path / f"{part}.jsonl")
    found = reward_data.comparisons(tmp_path)
    for part, n in (("train", 5), ("open", 3), ("test", 2)):
        assert found[part]["helpfulness"] == named(part, n)
        assert found[part]["safety"] == named(part, 1, "safety")
