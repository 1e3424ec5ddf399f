"""A network dealt out to many processes with FSDP2, and put together again.

    model = shard(Llama(config), group)          # on the meta device: no memory yet
    fill(model, weights("Llama-2-7b").get)       # each process reads its own rows
    ...
    whole(model)                                 # name → the whole weight, on the CPU

FSDP2 (`torch.distributed.fsdp.fully_shard`; Zhao et al. 2023) gives every process an
equal slice of the rows of each weight, its gradient and its AdamW moments. A block
is gathered just before it computes and let go right after.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from cria.actor_critic import ActorCritic
from cria.model import Llama
from cria.reward import RewardModel
from cria.scale.group import Group
from cria.training import pick_dtype

__all__ = ["fill", "first_weights", "shard", "whole"]


def shard(
    model: nn.Module,
    group: Group,
    *,
    dtype: str = "float32",
    recompute: bool = False,
) -> nn.Module:
    """Deal ``model`` out, in place; its weights are then to be filled (`fill`).

    model: a `Llama`, `RewardModel` or `ActorCritic`, best made on the meta device.
    dtype: of the matrix products and of what is sent; weights, the sums of gradients
        and AdamW stay float32.  recompute: activation checkpointing, block by block.
    """
    trunk, head = _parts(model)
    policy = MixedPrecisionPolicy(
        param_dtype=pick_dtype(dtype), reduce_dtype=torch.float32
    )
    model.to(device="meta", dtype=torch.float32)
    for block in trunk.layers:
        if recompute:
            block.forward = functools.partial(
                checkpoint, block.forward, use_reentrant=False
            )
        fully_shard(block, mesh=group.mesh, mp_policy=policy)
    if head is not None:
        # Scores and values are float32, whatever the rest is computed in.
        fully_shard(head, mesh=group.mesh)
    fully_shard(model, mesh=group.mesh, mp_policy=policy)
    for name in ("with_logprobs", "foretell"):  # called by name, not as model(…)
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    return model.to_empty(device=group.device)


@torch.no_grad()
def fill(model: nn.Module, get: Callable[[str], Tensor]) -> None:
    """Give a dealt-out model its weights; each process keeps its own rows of ``get``.

    get: name → the whole weight, the same in all processes. It may be a page of a
    file: rows that belong to others are then never read.
    """
    for name, p in model.named_parameters():
        _keep(p, get(name))


@torch.no_grad()
def first_weights(model: Llama, seed: int) -> None:
    """Give a dealt-out model the weights that ``Llama(config, seed)`` has.

    The same draws in the same order, one whole matrix in memory at a time.
    """
    Llama.init_weights(_OneByOne(model), seed)


def _parts(model: nn.Module) -> tuple[Llama, nn.Module | None]:
    """The language model in it, and the head beside that."""
    if isinstance(model, RewardModel):
        return model.trunk, model.head
    if isinstance(model, ActorCritic):
        return model.policy, model.value
    return model, None


class _OneByOne:
    """Stands in for the model in `Llama.init_weights`: its weights come whole, one
    after the other, and each is cut up when the next is asked for."""

    def __init__(self, model: Llama):
        self.model, self.layers = model, model.layers

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, p in self.model.named_parameters():
            matrix = torch.ones(p.shape)  # a norm's weight stays 1
            yield name, matrix
            _keep(p, matrix)


def _keep(p: DTensor, weight: Tensor) -> None:
    """Copy this process' rows of the whole ``weight`` into ``p``."""
    if weight.shape != p.shape:
        raise ValueError(
            f"A weight of shape {tuple(weight.shape)} does not fit where "
            f"{tuple(p.shape)} is expected."
        )
    mine = p.to_local()  # FSDP2 cuts as torch.chunk does: all parts but the last equal
    each = -(-len(weight) // p.device_mesh.size())
    start = p.device_mesh.get_local_rank() * each
    mine.copy_(weight[start : start + len(mine)])


@torch.no_grad()
def whole(model: nn.Module, group: Group) -> dict[str, Tensor]:
    """Every weight in one piece, on the CPU of the chief; empty for the others.

    All processes must call it: each sends its rows.
    """
    found = {}
    for name, p in model.named_parameters():
        weight = p.full_tensor()
        if group.chief:
            found[name] = weight.to("cpu", copy=True)  # of one process, it is p's own
    return found
