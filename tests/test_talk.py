"""Talking: the right prompt goes in, and only the answer comes out."""

import pytest
import torch

from cria import chat, checkpoints, config, stages, talk
from cria.config import ModelConfig
from cria.model import Llama
from cria.tokenizer import train


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voice")
    text = "where does anna live she lives in brill with a cat thank you"
    tokenizer = train([text] * 20, 330, folder / "tokenizer.model")
    shape = ModelConfig(
        dim=16, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=tokenizer.vocab_size,
        multiple_of=8, max_seq_len=96,
    )  # fmt: skip
    return talk.Speaker("toy", Llama(shape, seed=0), tokenizer)


def dialogue(*texts):
    roles = ["user", "assistant"] * len(texts)
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]


class Says:
    """Stands in for `sampling.generate`: records the prompt, answers in fixed ids."""

    def __init__(self, ids):
        self.ids, self.prompts = ids, []

    def __call__(self, model, prompts, **options):
        self.prompts += prompts
        ids = torch.tensor([[*self.ids, 5, 5]])  # what is masked must not be read
        mask = torch.tensor([[True] * len(self.ids) + [False] * 2])
        return type("Samples", (), {"ids": ids, "mask": mask})


def test_the_answer_is_the_text_before_eos(voice, monkeypatch):
    said = Says([*voice.tokenizer.encode("she lives in brill"), voice.tokenizer.eos_id])
    monkeypatch.setattr("cria.sampling.generate", said)
    asked = dialogue("where does anna live")
    assert voice.answer(asked) == "she lives in brill"
    assert said.prompts == [chat.prompt_ids(voice.tokenizer, asked)]


def test_old_turns_make_room_and_the_system_message_stays(voice, monkeypatch):
    said = Says([voice.tokenizer.eos_id])
    monkeypatch.setattr("cria.sampling.generate", said)
    system = {"role": "system", "content": "a cat"}
    turns = dialogue(*["she lives in brill"] * 20, "where does anna live")
    voice.answer([system, *turns], max_new_tokens=16)
    [ids] = said.prompts
    text = voice.tokenizer.decode(ids)
    assert len(ids) <= 96 - 16
    assert "a cat" in text and "where does anna live" in text
    assert 0 < text.count("she lives in brill") < 20


def test_a_text_too_long_for_the_model_is_one_sentence(voice):
    with pytest.raises(ValueError, match="there is room for 32"):
        voice.answer(dialogue("cat " * 200), max_new_tokens=64)


def test_a_seed_gives_the_same_answer_again_and_another_gives_another(voice):
    asked = dialogue("where does anna live")
    options = {"temperature": 1.0, "max_new_tokens": 12}
    answers = [voice.answer(asked, seed=seed, **options) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert voice.answer(asked, seed=1) == voice.answer(asked, seed=2)  # greedy


def test_a_checkpoint_talks_as_the_model_it_was_saved_from(voice, tmp_path):
    asked = dialogue("where does anna live")
    for folder in (tmp_path / "mine", tmp_path / "stage" / "model"):
        folder.parent.mkdir(exist_ok=True)
        checkpoints.save(voice.model, folder, voice.tokenizer)
    for place in (tmp_path / "mine", tmp_path / "stage"):
        loaded = talk.speaker(str(place), config.load("smoke"))
        assert loaded.answer(asked) == voice.answer(asked)


def test_the_newest_chat_model_is_taken_else_the_first_is_built(monkeypatch):
    built = set()
    monkeypatch.setattr(stages, "find", lambda name, *_: name in built)
    settings = config.load("smoke")
    assert talk.newest(settings) == "sft_a"
    built |= {"base", "sft_a", "sft_b"}
    assert talk.newest(settings) == "sft_a"  # sft_b is there to be compared with
    built |= {"preferences", "rm_helpful", "v1", "v2", "bon_pool"}
    assert talk.newest(settings) == "v2"  # a pool of samples does not talk
