"""What a stage costs: operations, GPU hours, hours on the clock."""

from __future__ import annotations

from dataclasses import dataclass

from cria.config import Config
from cria.scale import compute, memory
from cria.scale.machines import GPU
from cria.scale.placing import Sampler, has_output
from cria.scale.workload import Stage, Texts, own_logprob


@dataclass(frozen=True)
class Work:
    """Of a whole stage."""

    trained_flops: float
    recomputed_flops: float  # more, under activation checkpointing
    read_flops: float  # by models that do not learn
    written_flops: float
    gpu_hours: float  # of work: waiting GPUs not counted
    hours: float  # on the clock

    @property
    def flops(self) -> float:
        """The useful ones: what is computed a second time is left out."""
        return self.trained_flops + self.read_flops + self.written_flops


def work(
    config: Config,
    stage: Stage,
    gpu: GPU,
    gpus: int,
    mfu: float,
    sampler: Sampler | None,
) -> Work:
    """Training keeps no more GPUs busy than a step has rows; the rest uses all."""
    model, texts = config.model, stage.trained
    trained = texts.n * compute.train_flops(
        model, texts.length, has_output(config, stage)
    )
    read = _read_flops(config, stage)
    written, writing = 0.0, 0.0
    if (w := stage.writing) is not None:
        written = w.prompts * compute.write_flops(model, w.prompt, w.answer, w.samples)
        a_token = memory.cache_bytes(model, 1, memory.width(stage.dtype))
        traffic = w.answers * compute.write_bytes(
            sampler.weight_bytes, a_token, w.prompt, w.answer, sampler.at_once
        )
        writing = compute.writing_hours(
            written, traffic, gpu.peak_flops, gpu.bandwidth, mfu
        )
    training = compute.training_hours(trained, gpu.peak_flops, mfu)
    reading = compute.training_hours(read, gpu.peak_flops, mfu)
    busy = compute.busy_gpus(stage.rows, gpus)
    return Work(
        trained_flops=trained,
        recomputed_flops=texts.n * compute.recomputed_flops(model, texts.length),
        read_flops=read,
        written_flops=written,
        gpu_hours=training + reading + writing,
        hours=training / busy + (reading + writing) / gpus,
    )


def _read_flops(config: Config, stage: Stage) -> float:
    def read(texts: Texts, output: bool) -> float:
        return texts.n * compute.forward_flops(config.model, texts.length, output)

    return read(stage.read_by_policy, True) + sum(
        read(stage.read_by_judges, own_logprob(config, ground))
        for ground in stage.judges
    )
