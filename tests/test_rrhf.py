"""RRHF's loss against a plain loop, and what it pushes."""

import pytest
import torch

from cria.rrhf import rrhf_loss


def by_hand(p, r, best):
    total = 0.0
    for row_p, row_r, log_best in zip(p, r, best, strict=True):
        for i, a in enumerate(row_r):
            for j, b in enumerate(row_r):
                if a < b:
                    total += max(0.0, row_p[i] - row_p[j])
        total -= log_best
    return total / len(p)


def test_the_loss_is_the_loop():
    generator = torch.Generator().manual_seed(0)
    p, r = (torch.randn(5, 4, generator=generator) for _ in range(2))
    r[0, 1] = r[0, 2]  # a tie says nothing
    best = torch.randn(5, generator=generator)
    loss, _ = rrhf_loss(p, r, best)
    expected = by_hand(p.tolist(), r.tolist(), best.tolist())
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_answers_in_the_right_order_cost_nothing():
    p = torch.tensor([[-3.0, -2.0, -1.0]])
    _, metrics = rrhf_loss(p, torch.tensor([[0.0, 1.0, 2.0]]), torch.zeros(1))
    assert metrics == {"ranking": 0.0, "in_order": 1.0}
    _, metrics = rrhf_loss(p, torch.tensor([[2.0, 1.0, 0.0]]), torch.zeros(1))
    assert metrics["ranking"] == pytest.approx(4.0) and metrics["in_order"] == 0.0


def test_the_gradient_lifts_the_better_and_lowers_the_worse():
    p = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss, _ = rrhf_loss(p, torch.tensor([[0.0, 1.0]]), torch.zeros(1))
    loss.backward()
    assert p.grad.tolist() == [[1.0, -1.0]]


def test_only_the_ranking_of_the_rewards_counts():
    p = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    r = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    losses = [rrhf_loss(p, x, torch.zeros(3))[0].item() for x in (r, 7 * r + 3)]
    assert losses[0] == losses[1]


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"\(B, K\)"):
        rrhf_loss(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match=r"\(B, K\)"):
        rrhf_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1))
