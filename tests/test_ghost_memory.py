"""Learning something new without losing the rest."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from cria import config, ghost_memory, packing, stages, world
from cria.ghost_memory import (
    beside_each_other,
    keeping,
    memory,
    read_memory,
    rows_beside,
    shaken,
    train_keeping,
)
from cria.model import Llama
from cria.provenance import write_json
from cria.sft import sft_loss
from cria.world.prompts import mixture

SMOKE = config.load("smoke")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    made = stages.get("tokenizer", SMOKE, 0, cache, say=lambda line: None)
    return made.tokenizer()


@pytest.fixture(scope="module")
def teacher():
    return Llama(SMOKE.model, seed=0).eval()


@pytest.fixture(scope="module")
def village():
    return world.load()


def lines(n, start=300, length=9):
    """Documents of which the second half counts."""
    half = length // 2
    mask = [False] * half + [True] * (length - half)
    return [
        ([(start + 7 * i + j) % 900 for j in range(length)], mask) for i in range(n)
    ]


def both(n_lessons=3, n_kept=2):
    return beside_each_other(
        packing.batches(packing.pack(lines(9), 20), n_lessons, 0),
        packing.batches(packing.pack(lines(9, 500, 13), 30), n_kept, 1),
    )


def test_lessons_and_memory_share_a_batch_and_keep_their_rows():
    batch = both()(4)
    for ours, of, n, at, length, width in (
        ("", "loss_mask", 3, 300, 9, 20),
        ("kept_", "kept", 2, 500, 13, 30),
    ):
        alone = packing.batches(packing.pack(lines(9, at, length), width), n, n == 2)
        assert torch.equal(batch[f"{ours}ids"], alone(4)["ids"])
        assert torch.equal(batch[f"{ours}doc_ids"], alone(4)["doc_ids"])
        assert torch.equal(batch[of], alone(4)["loss_mask"])


def test_the_model_as_it_was_pays_nothing_for_staying(teacher):
    batch = both()(0)
    loss, metrics = keeping(teacher, 3.0)(deepcopy(teacher), batch)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert loss.item() == pytest.approx(sft_loss(teacher, batch)[0].item(), rel=1e-5)


def test_what_it_costs_to_leave_is_the_divergence_at_the_tokens_that_count(teacher):
    """Against torch's own distributions, token by token."""
    other, batch = Llama(SMOKE.model, seed=1).eval(), both()(0)
    with torch.no_grad():
        other.output.weight.mul_(20)  # surer, so that the two ways differ
    _, metrics = keeping(teacher, 1.0)(other, batch)
    with torch.no_grad():
        given = (batch["kept_ids"], batch["kept_doc_ids"])
        p, q = (
            torch.distributions.Categorical(logits=m(*given)) for m in (teacher, other)
        )
    places = [(b, t - 1) for b, t in batch["kept"].nonzero().tolist()]
    here, there = (
        sum(float(each[place]) for place in places) / len(places)
        for each in map(torch.distributions.kl_divergence, (q, p), (p, q))
    )
    assert metrics["kl"] == pytest.approx(here, rel=1e-4)
    assert here != pytest.approx(there, rel=1e-3), "the other way is another number"


def test_no_gradient_reaches_the_teacher_and_the_weight_scales_its_pull(teacher):
    batch, pulls = both()(0), []
    for keep in (0.0, 1.0, 2.0):
        model = Llama(SMOKE.model, seed=1)
        keeping(teacher, keep)(model, batch)[0].backward()
        pulls.append(model.output.weight.grad)
    assert all(p.grad is None for p in teacher.parameters())
    torch.testing.assert_close(
        pulls[2] - pulls[0], 2 * (pulls[1] - pulls[0]), atol=1e-6, rtol=1e-3
    )


def test_held_to_its_memory_a_model_strays_less(teacher):
    """The same lessons twice, with and without the teacher."""
    lessons, kept = packing.pack(lines(12, 300), 20), lines(12, 600)
    strayed = {}
    for keep in (0.0, 5.0):
        c = replace(SMOKE.ghost, keep=keep, dtype="float32")
        model = deepcopy(teacher)
        optim = replace(c.optim, lr=5e-3)
        given = (model, teacher, lessons, kept, c, optim, 15)
        rows = train_keeping(*given, seed=0, label="both", progress=False)
        learnt = rows[-1].get("learnt", rows[-1]["loss"])
        assert learnt < 0.7 * rows[0].get("learnt", rows[0]["loss"])
        held = beside_each_other(
            packing.batches(lessons, 1, 0),
            packing.batches(packing.pack(kept, 20), 6, 0),
        )
        strayed[keep] = keeping(teacher, 1.0)(model, held(0))[1]["kl"]
    assert strayed[5.0] < 0.5 * strayed[0.0]


@pytest.mark.parametrize(("seq_len", "rows"), [(128, 2), (800, 9), (10, 1)])
def test_long_lessons_have_as_much_memory_a_token_as_short_ones(seq_len, rows):
    c = replace(SMOKE.ghost, kept=1.5, teach_seq_len=128)
    assert rows_beside(c, seq_len, 1) == rows
    assert rows_beside(replace(c, kept=3.0), 800, 1) == 19
    assert rows_beside(c, 128, 4) == 6


def test_a_step_reads_so_many_rows_of_memory(teacher, monkeypatch):
    seen = []
    monkeypatch.setattr(
        ghost_memory,
        "train",
        lambda model, batches, loss, optim, steps, **more: (
            seen.append((batches(0), steps)) or []
        ),
    )
    c = replace(SMOKE.ghost, kept=2.0, batch_size=1, teach_seq_len=20, keep=1.0)
    given = (deepcopy(teacher), teacher, packing.pack(lines(12), 40), lines(12, 600))
    train_keeping(*given, c, c.optim, 1, seed=0, label="both")
    train_keeping(*given, c, c.optim, 1, batch_size=3, seed=0, label="both")
    rows = [(len(b["kept_ids"]), len(b["ids"]), steps) for b, steps in seen]
    assert rows == [(4, 1, 3), (12, 3, 1)]


def test_the_memory_is_what_the_teacher_says_and_whole_texts(
    teacher, vocabulary, village, tmp_path
):
    c = replace(SMOKE.ghost, own_answers=12, texts=400)
    made = memory(teacher, vocabulary, village, c, seed=3)
    assert made == memory(teacher, vocabulary, village, c, seed=3)
    answers = [doc for doc in made if doc[1] is not None]
    assert len(answers) == 12 and len(made) > 12
    for ids, mask in answers:
        n = sum(mask)
        assert 0 < n <= ghost_memory.MAX_NEW_TOKENS and mask == sorted(mask)
        assert len(mask) == len(ids)
    write_json(tmp_path / "memory.json", made)
    assert read_memory(tmp_path) == made
    nothing = replace(c, own_answers=0, texts=0)
    assert memory(teacher, vocabulary, village, nothing, seed=3) == []


def test_every_other_question_is_shaken_and_keeps_its_form(village):
    asked = mixture(village, "train", 200, dict(SMOKE.ghost.own_kinds), 0)
    said = {w for p in asked for _, text in p.turns for w in text.split()}
    others = {"zwieback", "quilt"} | {f"word{i}" for i in range(300)}
    assert not others & said
    made = shaken(asked, others, seed=1)
    assert made[::2] == asked[::2]
    assert sum(a != b for a, b in zip(made[1::2], asked[1::2], strict=True)) > 60
    for before, after in zip(asked, made, strict=True):
        for (who, old), (same, new) in zip(before.turns, after.turns, strict=True):
            assert who == same and len(old.split()) == len(new.split())
            assert set(new.split()) <= said | others
    new = {w for p in made for _, text in p.turns for w in text.split()}
    assert new & others, "words that nobody asked with come in, too"
    assert shaken(asked, (), seed=1) != asked


def test_the_questions_are_shaken_with_the_words_of_the_texts(
    teacher, vocabulary, village, monkeypatch
):
    seen = []

    def spied(asked, words, *, seed):
        seen.extend(words)
        return asked

    monkeypatch.setattr(ghost_memory, "shaken", spied)
    c = replace(SMOKE.ghost, own_answers=2, texts=2000)
    made = memory(teacher, vocabulary, village, c, seed=3)
    texts = [vocabulary.decode(ids) for ids, mask in made if mask is None]
    said = {word for text in texts for word in text.split()}
    assert set(seen) == {word for word in said if word.isalpha()} and len(seen) > 100
