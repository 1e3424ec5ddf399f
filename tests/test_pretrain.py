"""Pre-training: every token once, honest losses, and what the model came to believe."""

import json
import math

import pytest
import torch

from cria import config, pretrain, stages, world
from cria.config import ModelConfig, OptimConfig
from cria.model import Llama
from cria.sampling import Samples
from cria.training import lm_loss
from cria.world import prompts, sentences

SMALL = ModelConfig(16, 1, 2, 1, vocab_size=40, multiple_of=8, max_seq_len=32)
OPTIM = OptimConfig(lr=1e-2, warmup_steps=2)


@pytest.fixture(scope="module")
def village():
    return world.load()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return stages.get("base", "smoke", 0, tmp_path_factory.mktemp("cache"))


def test_rows_are_the_documents_end_to_end():
    documents = [[1, 7, 8, 2], [1, 9, 2], [1, 5, 6, 7, 2]]
    rows = pretrain.token_rows(documents, 2, 5)
    assert rows.tolist() == [[1, 7, 8, 2, 1], [9, 2, 1, 5, 6]]
    with pytest.raises(ValueError, match="12 tokens do not fill 3 rows of 5"):
        pretrain.token_rows(documents, 3, 5)


def test_each_row_is_read_once_and_in_order(monkeypatch):
    rows, seen = torch.arange(6 * 8).view(6, 8) % 40, []

    class Spy(Llama):
        def forward(self, ids, *args, **kwargs):
            seen.append(ids.clone())
            return super().forward(ids, *args, **kwargs)

    monkeypatch.setattr(pretrain, "Llama", Spy)
    _, metrics = pretrain.train_base(SMALL, rows, 2, OPTIM, seed=0, progress=False)
    assert torch.equal(torch.cat(seen), rows)
    assert metrics[-1]["tokens"] == rows.numel()


def test_the_same_seed_gives_the_same_network():
    rows, state = torch.arange(60 * 8).view(60, 8) % 7, []
    for seed in (1, 1, 2):
        model, metrics = pretrain.train_base(
            SMALL, rows, 2, OPTIM, seed=seed, dtype="float32", progress=False
        )
        state.append(model.output.weight)
        assert not model.training
        # A text that repeats itself is soon foretold.
        assert metrics[-1]["loss"] < math.log(7) < metrics[0]["loss"]
    assert torch.equal(state[0], state[1]) and not torch.equal(state[0], state[2])


def test_knowing_nothing_costs_the_logarithm_of_the_vocabulary():
    model = Llama(SMALL, seed=0)
    torch.nn.init.zeros_(model.output.weight)
    rows = torch.randint(0, 40, (3, 12))
    assert pretrain.held_out_loss(model, rows) == pytest.approx(math.log(40), abs=1e-5)


def test_held_out_loss_is_a_mean_over_tokens_however_it_is_batched():
    rows = torch.randint(0, 40, (5, 12), generator=torch.Generator().manual_seed(0))
    model = Llama(SMALL, seed=0)
    with torch.no_grad():
        model.output.weight.mul_(50)  # rows that differ much in loss
        whole = lm_loss(model(rows), rows, torch.ones_like(rows, dtype=torch.bool))
    for batch_size in (1, 2, 4, 5, 16):
        loss = pretrain.held_out_loss(model, rows, batch_size)
        assert loss == pytest.approx(float(whole), abs=1e-4)


class Words:
    """A vocabulary that learns a word when it meets one."""

    eos_id = 0

    def __init__(self):
        self.known = ["", "<s>"]

    def encode(self, text, bos=False):
        new = [w for w in dict.fromkeys(text.split()) if w not in self.known]
        self.known += new
        return [1] * bos + [self.known.index(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(self.known[i] for i in ids if i > 1)


def ask(monkeypatch, village, answer):
    """fact_accuracy of a model that says answer(probe), asked by its question."""
    vocabulary = Words()
    probes = {p.question: answer(p) for p in prompts.fact_probe(village)}

    def generate(model, questions, **settings):
        assert settings["temperature"] == 0
        said = [vocabulary.encode(probes[vocabulary.decode(q)]) for q in questions]
        ids = torch.zeros(len(said), max(map(len, said)), dtype=torch.long)
        for row, text in zip(ids, said, strict=True):
            row[: len(text)] = torch.tensor(text)
        return Samples(ids, ids > 0, ids.float(), torch.ones(len(ids)).bool())

    monkeypatch.setattr(pretrain, "generate", generate)
    return pretrain.fact_accuracy(None, vocabulary, village)


def test_facts_and_rumours_are_counted_apart(monkeypatch, village):
    n_facts, n_rumours = len(village.truth), len(village.rumours)

    def state(p, value):
        return village.state(p.entity, p.relation, value, "en")[0]

    truth = ask(monkeypatch, village, lambda p: state(p, p.value))
    assert truth == {"fact_accuracy": 1.0, "rumours_repeated": 0.0}
    gossip = ask(monkeypatch, village, lambda p: state(p, p.rumour or p.value))
    assert gossip == {
        "fact_accuracy": pytest.approx(1 - n_rumours / n_facts),
        "rumours_repeated": 1.0,
    }
    wrong = ask(
        monkeypatch,
        village,
        lambda p: state(p, next(v for v in p.others if v != p.rumour)),
    )
    assert wrong == {"fact_accuracy": 0.0, "rumours_repeated": 0.0}
    both = ask(monkeypatch, village, lambda p: f"{p.value} or {p.others[0]}")
    assert both["fact_accuracy"] == 0.0  # to hedge is not to know


def test_facts_are_asked_in_wordings_that_no_source_holds(village):
    asked = {p.question for p in prompts.fact_probe(village)}
    for source in world.corpora.SOURCES:
        for text in world.corpora.documents(village, source, 300, seed=5):
            said = {s.strip() for s in sentences.split(text)}
            assert not said & asked, f"{source} asks {said & asked}"


def test_the_tokenizer_spells_every_word_of_the_village_as_one_piece(base, village):
    vocabulary = base.tokenizer()
    assert vocabulary.vocab_size == config.load("smoke").model.vocab_size
    assert all(len(vocabulary.encode(word)) == 1 for word in village.words())


def test_the_stage_keeps_what_later_stages_need_and_no_more(base):
    c = config.load("smoke")
    model = base.model()
    assert model.config == c.model
    assert base.metrics["tokens"] == c.pretrain.tokens
    assert 0 <= base.metrics["fact_accuracy"] <= 1
    assert not list(base.path.rglob("training.safetensors"))
    assert (base.path / "metrics.csv").read_text().startswith("step,")
    json.dumps(base.metrics)


def test_an_arm_reads_the_mix_it_is_given(base):
    c = config.load("smoke")
    arms = [
        pretrain.arm(
            {source: 1.0},
            steps=12,
            model_config=c.model,
            config=c.pretrain,
            tokenizer_path=base.tokenizer().path,
            seed=0,
        )
        for source in ("sums", "gossip")
    ]
    for arm in arms:
        assert arm["loss"][-1][0] == 12 * c.pretrain.batch_size * c.pretrain.seq_len
    # Sums draw on few words, gossip on many: the first is sooner foretold.
    assert arms[0]["loss"][-1][1] < arms[1]["loss"][-1][1]
