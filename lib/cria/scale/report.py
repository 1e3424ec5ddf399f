"""A plan as plain numbers, for programs, and beside the paper's.

Keys of `to_dict`; units are in the names, shares are 0 to 1:

- profile, parameters, gpus, gpus_given, mfu
- gpu: name, memory_bytes, usable_bytes, peak_flops_per_s, bandwidth_bytes_per_s,
  power_w, source
- kv_cache: tokens, bytes, bytes_without_gqa (one text of that many tokens)
- stages, a list: stage, parameters, steps, rows_per_step, trained_tokens, read_tokens,
  written_tokens, flops, recomputed_flops, gpu_hours, wall_hours, energy_mwh,
  fewest_gpus, memory_per_gpu, sampler (null where nothing is sampled)
- … memory_per_gpu: weights_bytes, gradients_bytes, optimizer_bytes, frozen_bytes,
  gathered_bytes, activations_bytes, activations_checkpointed_bytes, sampler_bytes,
  total_bytes, total_checkpointed_bytes, fits, fits_checkpointed
- … sampler: gpus_per_copy, answers_at_once, room_for_answers,
  room_for_answers_without_gqa, weights_bytes, cache_bytes_per_answer
- paper, rows of `comparison`: what, unit, paper, here, off (here ÷ paper − 1;
  null for PPO, whose GPUs and lengths the paper does not print)
- implied_mfu: of the paper's own GPU hours (null where the plan is not the paper's)
- assumptions: sentences
"""

from __future__ import annotations

from cria.scale import compute, machines, memory, paper, placing
from cria.scale.plan import Plan, StagePlan

PPO_LINE = "a PPO iteration"  # on GPUs and lengths that the paper does not print


def comparison(plan: Plan) -> list[dict]:
    """The paper's numbers beside the plan's: what, unit, paper, here, off."""
    if plan.paper is None:
        return []
    row, first = plan.paper, plan["pre-training"]
    paper_mwh = compute.energy_mwh(row.gpu_hours, row.watts)
    lines = [
        ("tokens", "tokens", paper.TOKENS, first.stage.trained.tokens),
        ("GPU time", "GPU hours", row.gpu_hours, first.work.gpu_hours),
        ("energy", "MWh", paper_mwh, first.energy_mwh),
        ("carbon", "tCO2eq", row.tonnes, compute.tonnes_co2eq(first.energy_mwh)),
        (
            "carbon of the paper's own energy",
            "tCO2eq",
            row.tonnes,
            compute.tonnes_co2eq(paper_mwh),
        ),
    ]
    if plan.parameters == paper.LARGEST:
        seconds = plan["PPO"].work.hours * 3600 / plan.config.ppo.iterations
        lines.append((PPO_LINE, "s", paper.PPO_SECONDS, seconds))
    return [
        {
            "what": what,
            "unit": unit,
            "paper": printed,
            "here": here,
            "off": None if what == PPO_LINE else here / printed - 1,
        }
        for what, unit, printed, here in lines
    ]


def implied_mfu(plan: Plan) -> float | None:
    """The share of an A100's peak that the paper's GPU hours mean for these FLOPs."""
    if plan.paper is None:
        return None
    peak = machines.GPUS[machines.PAPER_GPU].peak_flops
    flops = plan["pre-training"].work.flops
    return compute.implied_mfu(flops, plan.paper.gpu_hours, peak)


def to_dict(plan: Plan) -> dict:
    """Everything, as JSON can hold it; the keys are in this module's docstring."""
    model, gpu = plan.config.model, plan.gpu
    b, T = memory.width(plan.config.pretrain.dtype), model.max_seq_len
    return {
        "profile": plan.config.profile,
        "parameters": plan.parameters,
        "gpus": plan.gpus,
        "gpus_given": plan.given,
        "mfu": plan.mfu,
        "gpu": {
            "name": gpu.name,
            "memory_bytes": gpu.memory_bytes,
            "usable_bytes": gpu.usable_bytes,
            "peak_flops_per_s": gpu.peak_flops,
            "bandwidth_bytes_per_s": gpu.bandwidth,
            "power_w": gpu.watts,
            "source": gpu.source,
        },
        "kv_cache": {
            "tokens": T,
            "bytes": memory.cache_bytes(model, T, b),
            "bytes_without_gqa": memory.cache_bytes(model, T, b, gqa=False),
        },
        "stages": [_stage(plan, planned) for planned in plan.stages],
        "paper": comparison(plan),
        "implied_mfu": implied_mfu(plan),
        "assumptions": plan.assumptions,
    }


def _stage(plan: Plan, planned: StagePlan) -> dict:
    stage, work, m = planned.stage, planned.work, planned.memory
    read = stage.read_by_policy.tokens
    read += len(stage.judges) * stage.read_by_judges.tokens
    writing = stage.writing
    return {
        "stage": stage.name,
        "parameters": placing.parameters(plan.config, stage)[0],
        "steps": stage.steps,
        "rows_per_step": stage.rows,
        "trained_tokens": stage.trained.tokens,
        "read_tokens": read,
        "written_tokens": round(writing.answers * writing.answer) if writing else 0,
        "flops": work.flops,
        "recomputed_flops": work.recomputed_flops,
        "gpu_hours": work.gpu_hours,
        "wall_hours": work.hours,
        "energy_mwh": planned.energy_mwh,
        "fewest_gpus": planned.fewest_gpus,
        "memory_per_gpu": {
            "weights_bytes": m.weights,
            "gradients_bytes": m.gradients,
            "optimizer_bytes": m.optimizer,
            "frozen_bytes": m.frozen,
            "gathered_bytes": m.gathered,
            "activations_bytes": m.activations,
            "activations_checkpointed_bytes": m.activations_checkpointed,
            "sampler_bytes": m.sampler,
            "total_bytes": m.total,
            "total_checkpointed_bytes": m.total_checkpointed,
            "fits": m.total <= plan.gpu.usable_bytes,
            "fits_checkpointed": m.total_checkpointed <= plan.gpu.usable_bytes,
        },
        "sampler": _sampler(plan, planned),
    }


def _sampler(plan: Plan, planned: StagePlan) -> dict | None:
    s, stage = planned.sampler, planned.stage
    if s is None:
        return None
    taken = planned.memory.lasting if stage.together else 0.0
    b, model = memory.width(stage.dtype), plan.config.model
    whole = memory.cache_bytes(model, stage.writing.longest, b, gqa=False)
    free = s.gpus * (plan.gpu.usable_bytes - taken)
    return {
        "gpus_per_copy": s.gpus,
        "answers_at_once": s.at_once,
        "room_for_answers": s.room,
        "room_for_answers_without_gqa": int((free - s.weight_bytes) // whole),
        "weights_bytes": s.weight_bytes,
        "cache_bytes_per_answer": s.cache_bytes,
    }
