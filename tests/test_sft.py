"""SFT: what is learnt from a demonstration, and that nothing else is."""

from dataclasses import replace

import pytest
import torch

from cria import chat, config, packing, sft, sft_comparisons, side_by_side, stages
from cria import world as worlds
from cria.packing import pack, unpacked
from cria.training import lm_loss

SMOKE = config.load("smoke")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Everything up to both variants, in the smoke profile, from an empty cache."""
    cache = tmp_path_factory.mktemp("cache")
    made = {}
    for name in ("base", "sft_a", "sft_b"):
        made[name] = stages.get(name, SMOKE, cache=cache, say=lambda line: None)
    return made


@pytest.fixture(scope="module")
def vocabulary(chain):
    return chain["base"].tokenizer()


@pytest.fixture(scope="module")
def written():
    return sft.collect(worlds.load(), SMOKE.sft, "a", seed=0)


@pytest.fixture(scope="module")
def rows(vocabulary, written):
    return pack(sft.documents(vocabulary, written), SMOKE.sft.seq_len)


def weights(model):
    return torch.cat([p.flatten() for p in model.state_dict().values()])


@torch.no_grad()
def total_loss(model, rows):
    """The sum of the answers' losses, and how many tokens that is."""
    logits = model(rows.ids, rows.doc_ids)
    n = int(rows.loss_mask.sum())
    return float(lm_loss(logits, rows.ids, rows.loss_mask)) * n, n


# What is supervised


@pytest.mark.parametrize("separator", [False, True])
def test_supervised_tokens_are_the_answer_and_eos(vocabulary, written, separator):
    docs = sft.documents(vocabulary, written, separator)
    for d, (ids, mask) in zip(written, docs, strict=True):
        counted = [i for i, m in zip(ids, mask, strict=True) if m]
        assert counted[-1] == vocabulary.eos_id and counted.count(counted[-1]) == 1
        assert vocabulary.decode(counted).strip() == d.text
        assert ids[-len(counted) :] == counted  # in one piece, at the very end


def test_earlier_answers_are_read_but_not_learnt(vocabulary, written):
    several = [d for d in written if len(d.prompt.turns) > 1]
    assert several, "the smoke profile has dialogues of several turns"
    for d, (ids, mask) in zip(several, sft.documents(vocabulary, several), strict=True):
        assert ids.count(vocabulary.eos_id) == len(d.messages) // 2
        earlier = d.prompt.turns[1][1]
        read = vocabulary.decode(i for i, m in zip(ids, mask, strict=True) if not m)
        learnt = vocabulary.decode(i for i, m in zip(ids, mask, strict=True) if m)
        assert earlier in read and earlier not in learnt


def test_the_loss_asks_for_eos_but_not_for_prompt_tokens(chain, rows):
    model = chain["base"].model()
    logits = model(rows.ids[:4], rows.doc_ids[:4]).detach()
    ids, mask = rows.ids[:4], rows.loss_mask[:4]
    other = ids.where(mask, (ids + 7) % SMOKE.model.vocab_size)
    assert torch.equal(lm_loss(logits, ids, mask), lm_loss(logits, other, mask))
    eos = (ids == chain["base"].tokenizer().eos_id) & mask
    wrong = ids.where(~eos, ids + 7)
    assert eos.any() and lm_loss(logits, ids, mask) != lm_loss(logits, wrong, mask)


def test_separator_stands_before_every_answer_and_is_given_not_learnt(
    vocabulary, written
):
    sep = vocabulary.id("<sep>")
    plain = sft.documents(vocabulary, written)
    parted = sft.documents(vocabulary, written, separator=True)
    for d, (ids, _), (with_sep, mask) in zip(written, plain, parted, strict=True):
        assert sep not in ids and [i for i in with_sep if i != sep] == ids
        assert with_sep.count(sep) == len(d.messages) // 2
        assert not any(m and i == sep for i, m in zip(with_sep, mask, strict=True))
        prompt = chat.prompt_ids(vocabulary, d.prompt.messages, separator=True)
        assert with_sep[: len(prompt)] == prompt and prompt[-1] == sep


# The demonstrations


def test_variants_differ_in_their_annotators_and_prompts(written):
    village = worlds.load()
    course = config.load("course").sft
    a, b = (sft.collect(village, course, variant, seed=0) for variant in "ab")
    assert len(b) == round(course.variants["b"].data_share * len(a))
    for found, variant in ((a, "a"), (b, "b")):
        for style, share in course.variants[variant].annotators.items():
            n = sum(d.style == style for d in found)
            assert n == pytest.approx(share * len(found), abs=1)
    assert [d.prompt.id for d in a[: len(b)]] != [d.prompt.id for d in b]
    assert sft.collect(village, SMOKE.sft, "a", seed=0) == written
    assert sft.collect(village, SMOKE.sft, "a", seed=1) != written


def test_all_demonstrations_are_on_training_prompts(written):
    assert {d.prompt.split for d in written} == {"train"}


# Packed or one a row: the same loss


def test_packed_loss_is_unpacked_loss(chain, vocabulary, written):
    model = chain["base"].model()
    docs = sft.documents(vocabulary, written[:60])
    packed, n = total_loss(model, pack(docs, 128))
    alone, m = total_loss(model, unpacked(docs, 128))
    assert n == m == sum(sum(mask) for _, mask in docs)
    assert packed == pytest.approx(alone, rel=1e-5)
    for rows in (pack(docs, 128), unpacked(docs, 128)):
        assert sft.answer_loss(model, rows, 7) == pytest.approx(alone / n, rel=1e-5)
        everything = packing.batches(rows, len(rows), seed=0)(0)
        trained_on = float(sft.sft_loss(model, everything)[0].detach())
        assert trained_on == pytest.approx(alone / n, rel=1e-5)


# Training


def test_same_seed_gives_the_same_weights_bit_for_bit(chain, rows):
    made = []
    for seed in (0, 0, 1):
        model = chain["base"].model()
        sft.train_sft(model, rows, SMOKE.sft, seed=seed, steps=4, progress=False)
        made.append(weights(model))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_training_lowers_the_answers_loss(chain, rows):
    model = chain["base"].model()
    before = sft.answer_loss(model, rows)
    sft.train_sft(model, rows, SMOKE.sft, seed=0, steps=10, progress=False)
    assert sft.answer_loss(model, rows) < before - 0.05


def test_steps_default_to_the_epochs(chain, rows):
    metrics = sft.train_sft(
        chain["base"].model(), rows, SMOKE.sft, seed=0, batch_size=5, progress=False
    )
    expected = packing.n_steps(rows, 5, SMOKE.sft.epochs)
    assert metrics[-1]["step"] == expected == -(-len(rows) * SMOKE.sft.epochs // 5)


# The stages


def test_the_stages_start_from_the_base_and_differ(chain):
    base, a, b = (weights(chain[name].model()) for name in ("base", "sft_a", "sft_b"))
    assert not torch.equal(base, a) and not torch.equal(a, b)
    for name in ("sft_a", "sft_b"):
        metrics = chain[name].metrics
        n = {"sft_a": 1.0, "sft_b": SMOKE.sft.variants["b"].data_share}[name]
        assert metrics["demonstrations"] == round(n * SMOKE.sft.demonstrations)
        assert 0.9 < metrics["fill"] <= 1.0
        assert not (chain[name].path / "training.safetensors").exists()


def test_the_switches_reach_the_stage(chain, tmp_path):
    """Packing and the separator change what is trained on, and so the weights."""
    small = replace(SMOKE.sft, demonstrations=40)
    made = {}
    for name, changed in (
        ("plain", {}),
        ("one a row", {"packing": False}),
        ("separator", {"separator": True}),
    ):
        out = tmp_path / name
        out.mkdir()
        profile = replace(SMOKE, sft=replace(small, **changed))
        metrics = sft.build(profile, 0, {"base": chain["base"]}, out, variant="a")
        made[name] = metrics, (out / "model" / "model.safetensors").read_bytes()
    assert made["one a row"][0]["rows"] == 40 > made["plain"][0]["rows"]
    assert len({files for _, files in made.values()}) == 3


# The comparisons


@pytest.fixture(scope="module")
def arm(chain, rows):
    folder = chain["base"].file("model.safetensors").parent
    return dict(
        base=folder,
        rows=rows,
        held_out=rows,
        config=SMOKE.sft,
        steps=2,
        seed=0,
        per_kind=1,
    )


def test_an_arm_is_the_same_in_a_process_of_its_own(arm):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = sft_comparisons.arm(**arm)
        other = sft_comparisons.arm(**{**arm, "seed": 1})
    finally:
        torch.set_num_threads(threads)
    there = side_by_side.run(sft_comparisons.arm, {"it": arm}, progress=False)["it"]
    assert there == here
    assert other["held_out"] != here["held_out"]
    assert here["curve"][0] == [2] and 0 <= here["greedy"]["helpfulness"] <= 1


def test_an_arm_with_separator_is_asked_with_separator(arm, monkeypatch):
    seen = []
    real = sft_comparisons.gold

    def gold(*args, **kw):
        seen.append(kw["separator"])
        return real(*args, **kw)

    monkeypatch.setattr(sft_comparisons, "gold", gold)
    sft_comparisons.arm(**arm, separator=True)
    assert seen == [True, True]


def test_speed_counts_useful_tokens_and_leaves_the_model_alone(
    chain, vocabulary, written
):
    model = chain["base"].model()
    before = weights(model).clone()
    docs = sft.documents(vocabulary, written)
    packed, alone = pack(docs, 256), unpacked(docs, 256)
    batch = round(4 * packed.n_docs / len(packed))
    rates = sft_comparisons.tokens_a_second(
        model,
        {"packed": (packed, 4), "alone": (alone, batch)},
        SMOKE.sft,
        steps=1,
        rounds=1,
    )
    assert torch.equal(weights(model), before)
    assert set(rates) == {"packed", "alone"} and min(rates.values()) > 0
