"""Means of weights."""

from dataclasses import replace

import pytest
import torch

from cria import config
from cria.averaging import move_toward
from cria.model import Llama

SHAPE = replace(config.load("smoke").model, dim=16, n_layers=1)


def filled(value):
    net = Llama(SHAPE, seed=0)
    for p in net.parameters():
        p.data.fill_(value)
    return net


@pytest.mark.parametrize(("share", "weight"), [(1, 4), (0.25, 1), (0.05, 0.2), (0, 0)])
def test_every_weight_moves_its_share_of_the_way(share, weight):
    model, other = filled(0.0), filled(4.0)
    move_toward(model, other, share)
    for p in model.parameters():
        torch.testing.assert_close(p.data, torch.full_like(p, weight))
    assert all(bool((p == 4).all()) for p in other.parameters()), "left as it was"


def test_a_whole_step_makes_it_the_other_bit_for_bit():
    model, other = Llama(SHAPE, seed=1), Llama(SHAPE, seed=2)
    move_toward(model, other, 1)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_many_small_steps_are_a_running_mean():
    """The k-th last network weighs share · (1 − share)^k; the start what is left."""
    mean, expected = filled(7.0), 7 * 0.9**30
    for i in range(30):
        move_toward(mean, filled(float(i)), 0.1)
        expected += i * 0.1 * 0.9 ** (29 - i)
    assert float(mean.output.weight[0, 0].detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_beyond_the_way_is_refused(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        move_toward(filled(0.0), filled(1.0), share)


def test_networks_of_other_shapes_are_refused():
    other = Llama(replace(SHAPE, n_layers=2), seed=0)
    with pytest.raises(ValueError, match="same shape"):
        move_toward(Llama(SHAPE, seed=0), other, 0.5)
