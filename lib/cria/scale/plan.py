"""A plan: what a config's stages take on so many GPUs, beside the paper's numbers.

    plan(config.load("llama2-70b"), gpus=2048, gpu="h100-80gb")   # prints itself
    report.to_dict(plan(...))                                     # for programs

The formulas are in `memory` and `compute`, each with its source; what the paper does
not print is assumed, and listed in `Plan.assumptions`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cria import names
from cria.config import Config
from cria.scale import compute, costs, machines, memory, paper, placing, workload
from cria.scale.costs import Work
from cria.scale.machines import GPU
from cria.scale.placing import Memory, Sampler
from cria.scale.workload import Stage


class PlanError(ValueError):
    """What was asked for does not fit; the message says what does."""


@dataclass(frozen=True)
class StagePlan:
    """One stage, planned."""

    stage: Stage
    memory: Memory  # a GPU
    fewest_gpus: int
    work: Work
    energy_mwh: float
    sampler: Sampler | None


@dataclass(frozen=True)
class Plan:
    """The whole recipe on a machine; prints itself."""

    config: Config
    gpu: GPU
    gpus: int
    given: bool  # or the fewest that hold everything
    mfu: float
    parameters: int
    stages: tuple[StagePlan, ...]
    paper: paper.Cost | None  # where network and tokens are the paper's

    def __getitem__(self, name: str) -> StagePlan:
        by_name = {s.stage.name: s for s in self.stages}
        if name not in by_name:
            raise KeyError(names.unknown("stage", name, by_name))
        return by_name[name]

    def __repr__(self) -> str:
        from cria.scale import table

        return table.text(self)

    @property
    def assumptions(self) -> list[str]:
        """What is ours, because the paper does not print it."""
        mean, c = workload.lengths(self.config), self.config
        b = memory.width(c.pretrain.dtype)
        return [
            f"GPUs reach {self.mfu:.0%} of their peak (MFU) in training, "
            f"{compute.MBU:.0%} of their memory's bandwidth in sampling; a tiny "
            "network reaches far less.",
            f"{machines.RESERVE:.0%} of the memory stays free. Weights, gradients and "
            "AdamW are float32, the products "
            f"{'float32' if b == 4 else 'bfloat16'}. One row a GPU at a time.",
            f"Mean tokens: a prompt {mean.prompt:g}, an answer {mean.answer:g}, a "
            f"comparison {mean.pair:.4g}; {mean.source}.",
            f"Rejection sampling: K = {c.rejection.samples} answers, "
            f"{c.rejection.prompts:,} prompts a round, {c.rejection.rounds} rounds, "
            "sampled by this network (in the paper, by the 70B for all sizes).",
            f"PPO runs all of its {c.ppo.iterations} iterations; the critic is a head "
            "on the policy. Reward models are as big as the policy.",
        ]


def plan(
    config: Config,
    gpus: int | None = None,
    gpu: str = machines.PAPER_GPU,
    mfu: float = compute.MFU,
) -> Plan:
    """Plan every stage of `config` on `gpus` GPUs, or on the fewest that hold all.

    `PlanError` where a stage does not fit even with activation checkpointing;
    ValueError for an unknown GPU, gpus < 1 or an MFU outside 0 to 1.
    """
    machine = machines.find(gpu)
    if gpus is not None and gpus < 1:
        raise ValueError(f"gpus is {gpus}; it must be 1 or more.")
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu is {mfu}; it is a share, above 0 and at most 1.")
    todo = workload.stages(config)
    least = [placing.fewest(config, stage, machine) for stage in todo]
    for stage, enough in zip(todo, least, strict=True):
        if enough is None:
            raise PlanError(_never_fits(config, stage, machine))
        if gpus is not None and gpus < enough:
            raise PlanError(_too_few(config, stage, machine, gpus, enough, max(least)))
    n = gpus or max(least)
    same = abs(config.pretrain.tokens / paper.TOKENS - 1) < 0.01
    return Plan(
        config,
        machine,
        n,
        gpus is not None,
        mfu,
        memory.count_parameters(config.model),
        tuple(
            _planned(config, stage, machine, n, mfu, enough)
            for stage, enough in zip(todo, least, strict=True)
        ),
        paper.TABLE_2.get(config.model.n_params) if same else None,
    )


def _planned(
    config: Config, stage: Stage, gpu: GPU, gpus: int, mfu: float, enough: int
) -> StagePlan:
    room, sampler = placing.stage_memory(config, stage, gpu, gpus), None
    if stage.writing is not None:
        taken = room.lasting if stage.together else 0.0
        sampler = placing.sampler(config, stage, gpu, gpus, taken)
    done = costs.work(config, stage, gpu, gpus, mfu, sampler)
    energy = compute.energy_mwh(done.gpu_hours, gpu.watts)
    return StagePlan(stage, room, enough, done, energy, sampler)


def _too_few(
    config: Config, stage: Stage, gpu: GPU, gpus: int, enough: int, for_all: int
) -> str:
    lasting = placing.lasting_bytes(config, stage) / 1e9
    have = gpus * gpu.usable_bytes / 1e9
    more = f" ({for_all} for every stage)" if for_all > enough else ""
    return (
        f"{config.profile} does not fit on {gpus} × {gpu.name}: the training state of "
        f"{stage.name} takes {lasting:,.0f} GB, and {gpus} of these GPUs have "
        f"{have:,.0f} GB to fill; with what one row needs on each, it takes at least "
        f"{enough}{more}."
    )


def _never_fits(config: Config, stage: Stage, gpu: GPU) -> str:
    """No number of GPUs helps where one row, which FSDP cannot cut, is too long."""
    room = placing.stage_memory(config, stage, gpu, placing.MOST)
    whole = (room.gathered + room.activations_checkpointed) / 1e9
    would = "no GPU of our table has as much"
    for other in machines.GPUS.values():
        least = [placing.fewest(config, s, other) for s in workload.stages(config)]
        if None not in least:
            would = f"{max(least)} × {other.name} would do"
            break
    return (
        f"{config.profile} does not fit on {gpu.name}, however many: in {stage.name} a "
        f"row of {stage.row_tokens} tokens and the layers gathered for it take "
        f"{whole:,.1f} GB on each GPU, which has {gpu.usable_bytes / 1e9:,.1f} GB to "
        f"fill; {would}."
    )
