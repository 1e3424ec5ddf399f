"""A plan as a page of text for people, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from cria import names
from cria.scale.plan import Plan
from cria.scale.report import to_dict

WIDTH = 100
YEAR = 365.25 * 24  # hours


def text(plan: Plan) -> str:
    """What is planned, memory, work, sampling, the paper beside it, what is assumed."""
    found = to_dict(plan)
    parts = [_head(found), _memory(found), _work(found), _samplers(found)]
    parts += [_paper(found), _mind(found), _assumed(found)]
    return "\n\n".join(part for part in parts if part)


def _head(found: dict) -> str:
    gpu, cache = found["gpu"], found["kv_cache"]
    chosen = "" if found["gpus_given"] else ", the fewest that hold every stage"
    has, without = cache["bytes"], cache["bytes_without_gqa"]
    gqa = f"{size(has)} with GQA, {size(without)} without"
    if has == without:
        gqa = f"{size(has)} (no GQA: every query head has its own keys)"
    return "\n".join(
        [
            f"{found['profile']}: {found['parameters']:,} parameters",
            f"on {found['gpus']:,} × {gpu['name']}{chosen} "
            f"({size(gpu['memory_bytes'])}, {gpu['peak_flops_per_s'] / 1e12:.0f} "
            f"TFLOP/s bfloat16, {gpu['power_w']:.0f} W)",
            f"keys and values of one text of {cache['tokens']:,} tokens: {gqa}",
        ]
    )


def _memory(found: dict) -> str:
    sizes = ["weights", "gradients", "optimizer", "frozen", "gathered", "activations"]
    sizes += ["activations_checkpointed", "total", "total_checkpointed"]
    memories = [stage["memory_per_gpu"] for stage in found["stages"]]
    unit, word = _unit(max(m["total_checkpointed_bytes"] for m in memories), _BYTES)
    rows = [["", "weights", "grads", "AdamW", "frozen", "gathered"]]
    rows[0] += ["activ.", "ckpt.", "total", "ckpt.", "fewest"]
    for stage, m in zip(found["stages"], memories, strict=True):
        numbers = [m[f"{key}_bytes"] / unit for key in sizes]
        cells = [three(n) if n else "–" for n in numbers]
        rows.append([stage["stage"], *cells, f"{stage['fewest_gpus']:,}"])
    usable = size(found["gpu"]["usable_bytes"])
    needed = ""
    if not all(m["fits"] for m in memories):
        needed = f" More than {usable} does not fit: checkpointing is needed."
    return "\n".join(
        [
            f"Memory a GPU in {word}, of {usable} to fill: FSDP (full shard), one row "
            "in flight",
            *grid(rows),
            *_wrapped(
                "ckpt.: with activation checkpointing. frozen: models that only read. "
                "gathered: layers made whole for a moment. PPO's total is that of "
                "sampling, where this takes more. fewest: GPUs that hold it, with "
                "checkpointing." + needed
            ),
        ]
    )


def _work(found: dict) -> str:
    rows = [["", "steps", "trained", "read", "written", "FLOPs", "GPU time", "clock"]]
    rows[0].append("energy")
    for s in found["stages"]:
        tokens = [s[f"{key}_tokens"] for key in ("trained", "read", "written")]
        rows.append(
            [
                s["stage"],
                f"{s['steps']:,}",
                *(short(n) if n else "–" for n in tokens),
                f"{s['flops']:.2e}",
                gpu_time(s["gpu_hours"]),
                clock(s["wall_hours"]),
                energy(s["energy_mwh"]),
            ]
        )
    return "\n".join(["Work, in tokens trained on, read and written", *grid(rows)])


def _samplers(found: dict) -> str:
    lines = ["Sampling"]
    for stage in found["stages"]:
        if (s := stage["sampler"]) is None:
            continue
        n, room, without = (
            s["gpus_per_copy"],
            s["room_for_answers"],
            s["room_for_answers_without_gqa"],
        )
        gqa = f" ({_count(without)} without GQA)" if without < room else ""
        lines += _wrapped(
            f"{stage['stage']}: {n} GPU{'s' * (n > 1)} a copy of the network "
            f"({size(s['weights_bytes'])}), which has room for {_count(room)} answers"
            f"{gqa} and writes {_count(s['answers_at_once'])} at once."
        )
    return "\n".join(lines)


def _paper(found: dict) -> str:
    if not found["paper"]:
        return ""
    rows = [["", "paper", "here", "off", ""]]
    for line in found["paper"]:
        digits = 0 if line["paper"] > 1000 else 2 if line["unit"] == "tCO2eq" else 1
        values = [f"{line[key]:,.{digits}f}" for key in ("paper", "here")]
        if line["unit"] == "tokens":
            values = [short(line[key]) for key in ("paper", "here")]
        rows.append([line["what"], *values, _off(line["off"]), line["unit"]])
    of_ppo = ""
    if any(line["off"] is None for line in found["paper"]):
        of_ppo = " On how many GPUs its PPO ran, and at what lengths, is not printed."
    return "\n".join(
        [
            f"Beside the paper: pre-training{' and PPO' * bool(of_ppo)}",
            *grid(rows, left=(0, 4)),
            *_wrapped(
                f"Its GPU hours mean {found['implied_mfu']:.1%} of an A100's peak; "
                f"this plan assumes {found['mfu']:.0%}. Its energy is hours × W; its "
                "carbon follows with Llama 1's PUE of 1.1 and 0.385 kg/kWh." + of_ppo
            ),
        ]
    )


def _off(off: float | None) -> str:
    return "–" if off is None else f"{round(off, 5) + 0.0:+.1%}"  # never −0.0 %


def _mind(found: dict) -> str:
    idle = [s for s in found["stages"] if s["rows_per_step"] < found["gpus"]]
    if not idle:
        return ""
    rows = ", ".join(f"{s['stage']} {s['rows_per_step']:,}" for s in idle)
    return "\n".join(
        _wrapped(
            "Mind: FSDP deals out rows whole, so a step of training keeps no more GPUs "
            f"busy than it has rows ({rows}). The clock counts that; sampling and "
            "reading use all.",
            indent="",
        )
    )


def _assumed(found: dict) -> str:
    lines = [line for s in found["assumptions"] for line in _wrapped(s, "  - ")]
    return "\n".join(["Ours, because the paper does not print it", *lines])


def _wrapped(sentence: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        sentence,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_on_hyphens=False,
    )


def grid(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Columns lined up, to the right but for those in `left`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [f"  {line}".rstrip() for line in lines]


_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))
_COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1, ""))
_ENERGY = ((1e6, "MWh"), (1e3, "kWh"), (1, "Wh"), (1e-3, "mWh"), (1e-6, "µWh"))


def _unit(n: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest unit of which there is at least one (nearly), or the smallest."""
    return next((u for u in units if n >= 0.9995 * u[0]), units[-1])


def three(x: float) -> str:
    """Three digits, and never an exponent for what is large."""
    return f"{x:,.0f}" if x >= 99.95 else f"{x:#.3g}" if x >= 0.001 else f"{x:.3f}"


def short(n: float) -> str:
    """2,000,000,000,000 → 2T, with three digits."""
    unit, word = _unit(n, _COUNTS)
    return f"{three(n / unit)}{word}"


def _count(n: int) -> str:
    """Whole as long as it is short."""
    return f"{n:,}" if n < 10_000 else short(n)


def size(n: float) -> str:
    """Bytes as TB, GB, MB or kB, in thousands."""
    unit, word = _unit(n, _BYTES)
    return f"{three(n / unit)} {word}"


def energy(mwh: float) -> str:
    unit, word = _unit(mwh * 1e6, _ENERGY)
    return f"{three(mwh * 1e6 / unit)} {word}"


def gpu_time(hours: float) -> str:
    """Hours above a hundred, shorter words below."""
    return f"{hours:,.0f} h" if hours >= 100 else _duration(hours)


def clock(hours: float) -> str:
    """Years, days, or what is shorter."""
    if hours >= YEAR:
        return f"{three(hours / YEAR)} years"
    return f"{three(hours / 24)} days" if hours >= 100 else _duration(hours)


def _duration(hours: float) -> str:
    seconds = hours * 3600
    return f"{three(seconds * 1000)} ms" if seconds < 0.05 else names.duration(seconds)
