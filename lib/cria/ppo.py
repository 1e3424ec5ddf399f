"""PPO, the last step of RLHF (paper §3.2.3), as pure functions in the paper's order.

    arg max_π  E_{p∼D, g∼π} [R(g | p)]                                         eq. (3)
    R(g | p) = R~_c(g | p) − β · D_KL(π_θ(g | p) ‖ π_0(g | p))                 eq. (4)
    R_c      = R_s(g | p) if IS_SAFETY(p) or R_s(g | p) < 0.15, else R_h(g | p)
    R~_c     = WHITEN(LOGIT(R_c))

then Schulman et al. 2017 (PPO) with generalised advantages (GAE, 2016). Tensors of
tokens are (B, T), one column a token of prompt and answer; `mask` (B, T) is True on
the actions: the tokens of the answer, its EOS included. The value and the log-prob
in a column are those of the state *before* that token. What stands outside the mask
never counts. `cria.ppo_training` runs it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cria.reward import combine_rewards

__all__ = [
    "combine_rewards",
    "gae",
    "kl",
    "masked_mean",
    "policy_loss",
    "ppo_loss",
    "token_rewards",
    "value_loss",
    "whiten",
]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the mask (both of one shape); 0 if the mask is empty."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def whiten(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean 0 and standard deviation 1 over the mask, 0 outside it.

    For R~_c: x (B,) are the raw scores of the batch's answers, before the KL is
    taken off, so that β means the same whatever the reward model's scale.
    """
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    gap = x - masked_mean(x, mask)
    variance = masked_mean(gap.square(), mask)
    return torch.where(mask, gap * torch.rsqrt(variance + 1e-8), 0.0)


def kl(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Estimates of KL(π_θ ‖ π_0) from tokens that π_θ has drawn, token by token.

    With r = π_0 / π_θ (Schulman 2020, "Approximating KL divergence"): k1 = −log r,
    unbiased, of either sign; k2 = (log r)² / 2, biased, low variance; k3 = r − 1 −
    log r, unbiased and never negative. The penalty in the reward is k1.
    """
    log_r = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return log_r.square() / 2
    if estimator == "k3":
        return log_r.expm1() - log_r
    raise ValueError(f"There is no estimator {estimator!r} of the KL: k1, k2 or k3.")


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Eq. (4) spread over the tokens: −β·kl at each action, the score at the last.

    scores (B,): R~_c of each answer.  kl (B, T): an estimate a token.  → (B, T), 0
    outside the mask. Nothing here carries a gradient.
    """
    rewards = torch.where(mask, -beta * kl, 0.0).detach()
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, columns, -1).argmax(1, keepdim=True)
    return rewards.scatter_add(1, last, scores.detach()[:, None].to(rewards))


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, T) of answers that end with their last action.

        δ_t = r_t + γ·V_{t+1} − V_t          (V = 0 behind the last action)
        A_t = δ_t + γλ·A_{t+1},              the return is A_t + V_t

    λ = 0: one step of bootstrapping; λ = 1: everything that really came.
    """
    values = torch.where(mask, values, 0.0).detach()
    advantages = torch.zeros_like(values)
    later = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        later = torch.where(mask[:, t], delta + gamma * lam * later, 0.0)
        advantages[:, t], next_value = later, values[:, t]
    return advantages, advantages + values


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
) -> tuple[Tensor, dict[str, float]]:
    """−min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A) with ρ = π_θ / π_old, the mean over actions.

    All (B, T). metrics: clip_fraction (share of actions at which the clipped term is
    the smaller one, so that no gradient flows), update_kl (k3 of this update).
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    plain = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    loss = -masked_mean(torch.minimum(plain, clipped), mask)
    with torch.no_grad():
        metrics = {
            "clip_fraction": float(masked_mean((clipped < plain).float(), mask)),
            "update_kl": float(masked_mean(ratio - 1 - log_ratio, mask)),
        }
    return loss, metrics


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """½·max((V − R)², (V_clipped − R)²), the mean over actions; all (B, T).

    V_clipped stays within ± clip of the value at the time of sampling. The larger of
    the two errors counts: a value may never gain by running away.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - returns).square(), (near - returns).square())
    return 0.5 * masked_mean(errors, mask)


def ppo_loss(
    logprobs: Tensor,
    values: Tensor,
    batch: dict[str, Tensor],
    *,
    clip: float,
    value_coef: float,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a mini-batch: policy plus value_coef times critic.

    logprobs, values (B, T): of the policy that is being trained, with a gradient.
    batch: logprobs, values, advantages, returns and mask, as they were when the
    answers were sampled.
    """
    mask = batch["mask"]
    policy, metrics = policy_loss(
        logprobs, batch["logprobs"], batch["advantages"], mask, clip
    )
    critic = value_loss(values, batch["values"], batch["returns"], mask, clip)
    metrics |= {
        "policy_loss": float(policy.detach()),
        "value_loss": float(critic.detach()),
    }
    return policy + value_coef * critic, metrics
