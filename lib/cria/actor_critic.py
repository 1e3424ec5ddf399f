"""A chat model with a second head: what it says, and what it expects to get for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cria.model import Llama


class ActorCritic(nn.Module):
    """A `Llama` policy and a value head on its last states.

    One network, so that one pass gives both. The head starts at 0: V = 0 everywhere,
    and the first update is not spoilt by a critic that knows nothing.
    """

    def __init__(self, policy: Llama):
        super().__init__()
        self.policy = policy
        self.value = nn.Linear(policy.config.dim, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(
        self, ids: Tensor, doc_ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-prob of each action, value before it, entropy there: (B, T) each.

        ids (B, T): prompts and answers.  doc_ids (B, T): 0, or −1 for padding.
        mask (B, T): True on the actions; the three are 0 elsewhere.
        """
        h, chosen = _states(self.policy, ids, doc_ids, mask)
        logprob = F.log_softmax(self.policy.output(h).float(), -1)  # (N, V)
        with torch.autocast(h.device.type, enabled=False):
            value = self.value(h.float())[:, 0]
        with torch.no_grad():
            entropy = -(logprob.exp() * logprob).sum(-1)
        logprob = logprob.gather(1, chosen[:, None])[:, 0]
        return tuple(_spread(x, mask) for x in (logprob, value, entropy))


@torch.inference_mode()
def answer_logprobs(
    policy: Llama, ids: Tensor, doc_ids: Tensor, mask: Tensor
) -> Tensor:
    """log π of each action, (B, T), 0 elsewhere: of the reference, which stays."""
    h, chosen = _states(policy, ids, doc_ids, mask)
    logprob = -F.cross_entropy(policy.output(h).float(), chosen, reduction="none")
    return _spread(logprob, mask)


def _states(
    policy: Llama, ids: Tensor, doc_ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The states (N, D) that the N actions were drawn from, and the actions (N,)."""
    row, column = mask.nonzero(as_tuple=True)
    states = policy(ids, doc_ids, hidden=True)
    return states[row, column - 1], ids[row, column]


def _spread(flat: Tensor, mask: Tensor) -> Tensor:
    """(N,) values of the N actions → (B, T), 0 outside the mask."""
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)
