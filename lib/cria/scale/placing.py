"""What a stage puts on each GPU, and how many GPUs it takes at least."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, replace

from cria.config import Config
from cria.scale import memory
from cria.scale.machines import GPU
from cria.scale.workload import Stage, own_logprob

MOST = 100_000  # GPUs; beyond, a plan gives up


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the busiest moment, one row in flight."""

    weights: float
    gradients: float
    optimizer: float
    frozen: float  # other models, which only read
    gathered: float
    activations: float
    activations_checkpointed: float
    sampler: float = 0.0  # in PPO: a copy that writes, and its cache; at other moments

    @property
    def lasting(self) -> float:
        """What stays from step to step."""
        return self.weights + self.gradients + self.optimizer + self.frozen

    @property
    def total(self) -> float:
        return self.lasting + max(self.gathered + self.activations, self.sampler)

    @property
    def total_checkpointed(self) -> float:
        moment = self.gathered + self.activations_checkpointed
        return self.lasting + max(moment, self.sampler)


@dataclass(frozen=True)
class Sampler:
    """How answers are written: groups of GPUs that share one copy of the network."""

    gpus: int  # a group
    room: int  # answers that a group has memory for
    at_once: int  # answers that a group gets to write side by side
    weight_bytes: float
    cache_bytes: float  # of one answer, at its longest

    @property
    def bytes_a_gpu(self) -> float:
        return (self.weight_bytes + self.at_once * self.cache_bytes) / self.gpus


def sampler(
    config: Config, stage: Stage, gpu: GPU, gpus: int, taken: float
) -> Sampler | None:
    """The smallest groups whose weights fill at most half of the free memory (ours)
    and leave room for an answer; None where that takes more than all `gpus`.

    `taken`: bytes of each GPU that are not free, as training goes on beside.
    """
    b = memory.width(stage.dtype)
    weights = config.model.n_params * b
    cache = memory.cache_bytes(config.model, stage.writing.longest, b)
    free = gpu.usable_bytes - taken
    if free <= 0 or max(2 * weights, weights + cache) > gpus * free:
        return None
    group = math.ceil(max(2 * weights, weights + cache) / free)
    room = int((group * free - weights) // cache)
    share = math.ceil(stage.writing.at_once / (gpus // group))
    return Sampler(group, room, min(room, share), weights, cache)


def parameters(config: Config, stage: Stage) -> tuple[int, int]:
    """(trained, frozen): the frozen ones belong to models that stand beside."""
    policy = config.model.n_params

    def reward(ground: str) -> int:
        return memory.reward_parameters(config.model, own_logprob(config, ground))

    frozen = stage.frozen_policies * policy
    frozen += sum(map(reward, stage.judges)) * stage.together
    return reward(stage.ground) if stage.trains == "reward" else policy, frozen


def lasting_bytes(config: Config, stage: Stage) -> float:
    """Weights, gradients, AdamW and frozen models, on all GPUs together."""
    trained, frozen = parameters(config, stage)
    state = memory.WEIGHT + memory.GRADIENT + memory.ADAM
    return trained * state + frozen * memory.width(stage.dtype)


def stage_memory(config: Config, stage: Stage, gpu: GPU, gpus: int) -> Memory | None:
    """FSDP with full shard over all `gpus`; None if a sampler finds no room."""
    model, b = config.model, memory.width(stage.dtype)
    trained, frozen = parameters(config, stage)
    T, output = stage.row_tokens, has_output(config, stage)
    found = Memory(
        weights=memory.sharded_bytes(trained, memory.WEIGHT, gpus),
        gradients=memory.sharded_bytes(trained, memory.GRADIENT, gpus),
        optimizer=memory.sharded_bytes(trained, memory.ADAM, gpus),
        frozen=memory.sharded_bytes(frozen, b, gpus),
        gathered=memory.gathered_bytes(model, b),
        activations=memory.activation_bytes(model, T, b, False, output),
        activations_checkpointed=memory.activation_bytes(model, T, b, True, output),
    )
    if stage.writing is None:
        return found
    taken = found.lasting if stage.together else 0.0
    group = sampler(config, stage, gpu, gpus, taken)
    if group is None:
        return None
    beside = group.bytes_a_gpu if stage.together else 0.0
    return replace(found, sampler=beside)


def has_output(config: Config, stage: Stage) -> bool:
    """Is the output matrix used in training?"""
    return stage.trains == "policy" or own_logprob(config, stage.ground)


def fits(config: Config, stage: Stage, gpu: GPU, gpus: int) -> bool:
    """With activation checkpointing, does every GPU have the room?"""
    found = stage_memory(config, stage, gpu, gpus)
    return found is not None and found.total_checkpointed <= gpu.usable_bytes


def fewest(config: Config, stage: Stage, gpu: GPU) -> int | None:
    """The smallest number of GPUs that holds the stage; None where none does, because
    a part that cannot be cut is too big."""
    counts = range(1, MOST + 1)
    least = bisect.bisect_left(counts, True, key=lambda n: fits(config, stage, gpu, n))
    return None if least == MOST else counts[least]
