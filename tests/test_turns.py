"""Dialogues turn by turn: the cache that is kept must be worth a fresh reading."""

import pytest
import torch

from cria.config import ModelConfig
from cria.model import Llama
from cria.sampling import generate
from cria.turns import Turns

EOS = 2


@pytest.fixture(scope="module")
def model():
    settings = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=40, max_seq_len=64,
        multiple_of=16,
    )  # fmt: skip
    return Llama(settings, seed=1).eval()


def words(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 40, (n,), generator=generator).tolist()


def fresh(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0, -1]


LENGTHS = [(5, 1, 3), (2, 6, 1), (1, 1, 4)]  # tokens of each row, turn by turn


@pytest.fixture
def talk(model):
    """Three dialogues of three turns of unlike length, and their ids."""
    talk, said = Turns(model, 3, 60), [[], [], []]
    for turn in range(3):
        new = [words(lengths[turn], 10 * turn + r) for r, lengths in enumerate(LENGTHS)]
        talk.read(new)
        said = [old + more for old, more in zip(said, new, strict=True)]
    return talk, said


def test_reading_turn_by_turn_equals_reading_all_at_once(model, talk):
    turns, said = talk
    assert turns.lengths.tolist() == [len(ids) for ids in said]
    for ids, logits in zip(said, turns.logits, strict=True):
        torch.testing.assert_close(logits, fresh(model, ids), atol=1e-5, rtol=1e-4)


def test_sampling_from_the_cache_equals_sampling_from_the_whole_dialogue(model, talk):
    turns, said = talk
    for temperature in (0.0, 1.0):
        options = {"max_new_tokens": 7, "eos_id": EOS, "temperature": temperature}
        seeds = list(range(40, 46))
        tries = turns.sample(2, seeds=seeds, **options)
        whole = generate(model, said, n=2, seeds=seeds, **options).lists()
        assert [ids for several in tries for ids in several] == whole


def test_sampling_leaves_the_dialogues_where_they_are(model, talk):
    turns, said = talk
    before = turns.logits.clone()
    turns.sample(3, seeds=range(9), eos_id=EOS, max_new_tokens=5)
    assert turns.lengths.tolist() == [len(ids) for ids in said]
    assert torch.equal(turns.logits, before)
    turns.read([[7], [8, 9], [5]])
    torch.testing.assert_close(
        turns.logits[1], fresh(model, said[1] + [8, 9]), atol=1e-5, rtol=1e-4
    )


def test_rows_that_are_kept_go_on_as_if_alone(model, talk):
    turns, said = talk
    turns.keep([2, 0])
    turns.read([[5], [6, 7, 8]])
    for ids, logits in zip(
        (said[2] + [5], said[0] + [6, 7, 8]), turns.logits, strict=True
    ):
        torch.testing.assert_close(logits, fresh(model, ids), atol=1e-5, rtol=1e-4)


def test_an_answer_ends_at_its_first_eos(model, talk):
    turns, _ = talk
    seeds = range(600)
    tries = turns.sample(200, seeds=seeds, eos_id=EOS, max_new_tokens=8)
    ended = [ids for several in tries for ids in several if EOS in ids]
    assert ended and all(ids.index(EOS) == len(ids) - 1 for ids in ended)
    assert {len(i) for several in tries for i in several if EOS not in i} == {8}


def test_more_columns_than_positions_are_no_trouble(model):
    """Pads take columns, but no positions: only real tokens count to the limit."""
    talk, said = Turns(model, 2, 200), [[], []]
    for turn in range(6):
        new = [words(16 if turn % 2 == r else 1, turn + 50 * r) for r in (0, 1)]
        talk.read(new)
        said = [old + more for old, more in zip(said, new, strict=True)]
    assert talk.cache.length > model.config.max_seq_len > max(map(len, said))
    for ids, logits in zip(said, talk.logits, strict=True):
        torch.testing.assert_close(logits, fresh(model, ids), atol=1e-5, rtol=1e-4)


def test_too_long_a_dialogue_and_wrong_numbers_are_one_sentence(model):
    talk = Turns(model, 2, 200)
    with pytest.raises(ValueError, match="2 lists"):
        talk.read([[5]])
    with pytest.raises(ValueError, match="none of them empty"):
        talk.read([[5], []])
    talk.read([words(60, 1), [4]])
    with pytest.raises(ValueError, match="max_seq_len=64"):
        talk.sample(1, seeds=[1, 2], eos_id=EOS, max_new_tokens=5)
    with pytest.raises(ValueError, match="3 seeds for 2 samples"):
        talk.sample(1, seeds=[1, 2, 3], eos_id=EOS, max_new_tokens=2)
    with pytest.raises(ValueError, match="room for 4"):
        Turns(model, 1, 4).read([words(5, 1)])
