"""The optimizer: against arithmetic by hand and against transformers' schedule."""

import math

import pytest
import torch
from torch import nn

from cria.config import OptimConfig
from cria.optim import adamw, clip_, lr_at


class Small(nn.Module):
    """A matrix that decays, a norm that does not, and a frozen matrix."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.norm = nn.Parameter(torch.ones(4))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_adamw_is_adamw_by_hand():
    """Algorithm 2 of Loshchilov & Hutter (2019), in float64, five steps."""
    optim = OptimConfig(lr=0.01, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
    model = Small()
    optimizer = adamw(model, optim)
    decays = {"matrix": 0.1, "norm": 0.0}
    theta = {name: getattr(model, name).detach().double() for name in decays}
    m = {name: torch.zeros_like(t) for name, t in theta.items()}
    v = {name: torch.zeros_like(t) for name, t in theta.items()}
    generator = torch.Generator().manual_seed(1)
    for t in range(1, 6):
        for name, decay in decays.items():
            parameter = getattr(model, name)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            g = parameter.grad.double()
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            m_hat, v_hat = m[name] / (1 - 0.9**t), v[name] / (1 - 0.95**t)
            step = m_hat / (v_hat.sqrt() + 1e-5) + decay * theta[name]
            theta[name] = theta[name] - 0.01 * step
        optimizer.step()
    for name in decays:
        got = getattr(model, name).double()
        torch.testing.assert_close(got, theta[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(model.frozen, torch.ones(2, 2))


def test_without_gradient_only_matrices_decay():
    model = Small()
    before = model.matrix.detach().clone()
    for parameter in (model.matrix, model.norm):
        parameter.grad = torch.zeros_like(parameter)
    adamw(model, OptimConfig(lr=0.1, weight_decay=0.5)).step()
    torch.testing.assert_close(model.matrix.data, before * (1 - 0.1 * 0.5))
    assert torch.equal(model.norm, torch.ones(4))


def test_a_frozen_model_is_refused():
    with pytest.raises(ValueError, match="requires_grad"):
        adamw(Small().requires_grad_(False), OptimConfig(lr=0.1))


@pytest.mark.parametrize("warmup", [0, 7])
def test_cosine_is_transformers_cosine(warmup):
    """Ours counts steps from 1, so that the first one already learns."""
    transformers = pytest.importorskip("transformers.optimization")
    optim = OptimConfig(lr=3e-4, warmup_steps=warmup, min_lr_ratio=0.1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=optim.lr)
    schedule = transformers.get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, warmup, 50, min_lr_rate=0.1
    )
    for step in range(50):
        optimizer.step()
        schedule.step()
        assert lr_at(step, optim, 50) == pytest.approx(schedule.get_last_lr()[0])


def test_the_curve_of_the_paper():
    """Warm-up 2000 steps, peak 3e-4, down to 10 % (paper §2.2): 7B's 500k steps."""
    optim = OptimConfig(lr=3e-4, warmup_steps=2000)
    total = 500_000
    assert lr_at(0, optim, total) == pytest.approx(3e-4 / 2000)
    assert lr_at(999, optim, total) == pytest.approx(1.5e-4)
    assert lr_at(1999, optim, total) == pytest.approx(3e-4)
    halfway = (2000 + total) // 2 - 1
    assert lr_at(halfway, optim, total) == pytest.approx((3e-4 + 3e-5) / 2)
    assert lr_at(total - 1, optim, total) == pytest.approx(3e-5)


def test_constant_stays_at_the_peak():
    optim = OptimConfig(lr=1e-6, schedule="constant", warmup_steps=5)
    rates = [lr_at(step, optim, 20) for step in range(20)]
    assert rates[:5] == sorted(rates[:5]) and rates[0] < rates[4]
    assert set(rates[4:]) == {1e-6}


def test_warmup_is_the_larger_of_share_and_steps():
    """Reward models: 3 % of the steps, at least 5 (paper §3.2.2)."""
    optim = OptimConfig(lr=1.0, warmup_steps=5, warmup_frac=0.03)
    assert lr_at(3, optim, 100) < 1.0 == lr_at(4, optim, 100)
    assert lr_at(28, optim, 1000) < 1.0 == lr_at(29, optim, 1000)


@pytest.mark.parametrize("step", [-1, 10])
def test_steps_outside_the_run_are_refused(step):
    with pytest.raises(ValueError, match="outside a run of 10 steps"):
        lr_at(step, OptimConfig(lr=1.0), 10)


def test_clipping_shortens_but_never_turns_the_gradient():
    model = Small()
    model.matrix.grad = torch.full((3, 4), 3.0)
    model.norm.grad = torch.full((4,), -4.0)
    before = torch.cat([model.matrix.grad.flatten(), model.norm.grad])
    norm = clip_(model.parameters(), 1.0)
    after = torch.cat([model.matrix.grad.flatten(), model.norm.grad])
    assert norm == pytest.approx(math.sqrt(12 * 9 + 4 * 16))
    assert after.norm().item() == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(after * norm, before, rtol=1e-4, atol=1e-4)


def test_small_gradients_pass_untouched():
    model = Small()
    model.matrix.grad = torch.full((3, 4), 0.01)
    before = model.matrix.grad.clone()
    clip_(model.parameters(), 1.0)
    assert torch.equal(model.matrix.grad, before)
