"""One batch of experience for PPO: answers, rewards, advantages (paper §3.2.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cria import chat
from cria.actor_critic import ActorCritic, answer_logprobs
from cria.config import PPOConfig
from cria.model import Llama
from cria.ppo import gae, kl, token_rewards, whiten
from cria.sampling import generate
from cria.tokenizer import Tokenizer
from cria.training import pick_dtype
from cria.world.prompts import Prompt

__all__ = ["Experience", "Scorer", "experience", "lay_out", "sampled"]

# Raw scores R_c of one answer (ids, EOS included) to each prompt.
Scorer = Callable[[Sequence[Prompt], Sequence[Sequence[int]]], Sequence[float]]
ROWS = 64  # read at once without a gradient


@dataclass(frozen=True)
class Experience:
    """B answers and all that PPO needs to learn from them.

    batch: (B, T) tensors ids, doc_ids (0, padding −1), mask (the actions), logprobs
    and values (of the policy that sampled), advantages, returns.
    scores (B,): raw R_c.  kl (B,): k1 summed over each answer.  finished (B,).
    entropy: the mean over the actions, in nats.
    """

    batch: dict[str, Tensor]
    scores: Tensor
    kl: Tensor
    finished: Tensor
    entropy: float

    def summary(self) -> dict[str, float]:
        """Means over the answers, for a row of metrics."""
        return {
            "score": float(self.scores.mean()),
            "kl": float(self.kl.mean()),
            "length": float(self.batch["mask"].sum(1).float().mean()),
            "unfinished": float((~self.finished).float().mean()),
            "entropy": self.entropy,
        }

    def minibatches(self, size: int, seed: int) -> list[dict[str, Tensor]]:
        """The batch in random parts of ``size`` answers, each as wide as it must be."""
        order = torch.randperm(
            len(self.scores), generator=torch.Generator().manual_seed(seed)
        )
        return [
            narrow({k: x[i] for k, x in self.batch.items()}) for i in order.split(size)
        ]


def narrow(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the columns that are padding in every row."""
    width = int((batch["doc_ids"] >= 0).sum(1).max())
    return {name: x[:, :width] for name, x in batch.items()}


def lay_out(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Prompts and answers side by side: ids, doc_ids and mask, each (B, T)."""
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    doc_ids = torch.full_like(ids, -1)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start, end = len(prompt), len(prompt) + len(answer)
        ids[i, :end] = torch.tensor([*prompt, *answer])
        doc_ids[i, :end] = 0
        mask[i, start:end] = True
    return {"ids": ids, "doc_ids": doc_ids, "mask": mask}


def sampled(
    policy: Llama,
    vocabulary: Tokenizer,
    asked: Sequence[Prompt],
    config: PPOConfig,
    seed: int,
) -> tuple[list[list[int]], list[list[int]], Tensor]:
    """One answer to every prompt: prompts, answers (ids), and which have an end."""
    prompts = [chat.prompt_ids(vocabulary, p.messages) for p in asked]
    drawn = generate(
        policy,
        prompts,
        max_new_tokens=config.max_new_tokens,
        eos_id=vocabulary.eos_id,
        temperature=config.temperature,
        seeds=seed,
        dtype=pick_dtype(config.dtype),
    )
    return prompts, drawn.lists(), drawn.finished


def experience(
    actor: ActorCritic,
    reference: Llama,
    score: Scorer,
    vocabulary: Tokenizer,
    asked: Sequence[Prompt],
    config: PPOConfig,
    seed: int,
) -> Experience:
    """Sample an answer to each prompt and work out what every token of it was worth.

    The policy's log-probs and values come from one pass of its own, the reference's
    from one pass; nothing is read again before the update.
    """
    prompts, answers, finished = sampled(actor.policy, vocabulary, asked, config, seed)
    scores = torch.tensor(score(asked, answers), dtype=torch.float32)
    batch = lay_out(prompts, answers)
    logprobs, values, entropy = read(actor, batch, config.dtype)
    [ref_logprobs] = read(
        lambda *rows: (answer_logprobs(reference, *rows),), batch, config.dtype
    )
    mask = batch["mask"]
    rewards = whiten(scores) - config.no_eos_penalty * ~finished
    k1 = kl(logprobs, ref_logprobs)
    advantages, returns = gae(
        token_rewards(rewards, k1, mask, config.beta),
        values,
        mask,
        config.gamma,
        config.lam,
    )
    batch |= {"logprobs": logprobs, "values": values, "returns": returns}
    batch["advantages"] = whiten(advantages, mask)
    return Experience(
        batch, scores, (k1 * mask).sum(1), finished, float(entropy[mask].mean())
    )


@torch.inference_mode()
def read(net: Callable, batch: dict[str, Tensor], dtype: str) -> tuple[Tensor, ...]:
    """What ``net(ids, doc_ids, mask)`` gives for the whole batch, like lengths
    together: (B, T) each, without a gradient."""
    lengths = (batch["doc_ids"] >= 0).sum(1)
    found: list[Tensor] = []
    for rows in lengths.argsort().split(ROWS):
        part = narrow({k: batch[k][rows] for k in ("ids", "doc_ids", "mask")})
        with torch.autocast("cpu", torch.bfloat16, pick_dtype(dtype) is torch.bfloat16):
            given = net(part["ids"], part["doc_ids"], part["mask"])
        for i, x in enumerate(given):
            if len(found) == i:
                found.append(x.new_zeros(batch["mask"].shape))
            found[i][rows, : x.shape[1]] = x
    return tuple(found)
