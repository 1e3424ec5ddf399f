"""A smaller chat model goes through the same recipe."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cria import config, tokenizer, world
from cria.config import ModelConfig, OptimConfig
from cria.model import Llama
from cria.smaller import grown, quicker, shape
from cria.world.prompts import prompts

SMOKE = config.load("smoke")
PIECES = 340
SHAPE = ModelConfig(16, 1, 2, 1, vocab_size=PIECES, multiple_of=8, max_seq_len=1024)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    asked = prompts(world.load(), "sum", "train")[:40]
    texts = [turn for prompt in asked for _, turn in prompt.turns]
    path = tmp_path_factory.mktemp("words") / "tokenizer.model"
    return tokenizer.train([*texts, "0 1 2 3 4 5 6 7 8 9"], PIECES, path)


def test_it_is_smaller_and_its_steps_are_larger():
    course = config.load("course")
    for name, small in course.comparisons.reward_models.items():
        made, faster = shape(course, name)
        assert made.n_params < course.model.n_params / 2
        assert (made.dim, made.n_layers) == (small.dim, small.n_layers)
        assert made.vocab_size == course.model.vocab_size
        assert faster * course.pretrain.optim.lr == pytest.approx(small.lr)
    assert quicker(course.sft.optim, 2.0).lr == 2 * course.sft.optim.lr


def test_every_step_of_the_recipe_is_taken(words):
    c = SimpleNamespace(
        pretrain=replace(
            SMOKE.pretrain, steps=2, optim=OptimConfig(1e-3), dtype="float32"
        ),
        sft=replace(
            SMOKE.sft, demonstrations=6, optim=OptimConfig(1e-3), dtype="float32"
        ),
    )

    def weights(config=c, faster=1.0):
        made = grown(SHAPE, faster, config, words, seed=3)
        return torch.cat([p.flatten() for p in made.state_dict().values()])

    plain = weights()
    assert torch.equal(plain, weights())
    start = Llama(SHAPE, seed=3)
    start = torch.cat([p.flatten() for p in start.state_dict().values()])
    assert 0 < (plain - start).norm() < (weights(faster=3.0) - start).norm()
    slower = SimpleNamespace(
        **{k: replace(v, optim=OptimConfig(5e-4)) for k, v in vars(c).items()}
    )
    assert torch.equal(plain, weights(slower, faster=2.0)), "of every step"
    for part in ("pretrain", "sft"):
        still = replace(getattr(c, part), optim=OptimConfig(1e-12))
        other = SimpleNamespace(**{**vars(c), part: still})
        assert not torch.equal(plain, weights(other)), part
