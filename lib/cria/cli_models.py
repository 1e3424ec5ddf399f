"""The commands about a model: `cria chat`, `cria export`, `cria plan`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cria import names
from cria.cli_usage import UsageError, aside, config_of, understood


def chat(arguments: argparse.Namespace) -> None:
    """Talk to a stage, or ask one question with --prompt."""
    from cria import talk
    from cria.stages import STAGES

    config, target = config_of(arguments.profile), arguments.target
    known = [name for name, stage in STAGES.items() if stage.speaks]
    if target and target not in STAGES and not Path(target).expanduser().exists():
        raise UsageError(names.unknown("stage or checkpoint", target, known))
    if target in STAGES and target not in known:
        raise UsageError(
            f"the stage {target} holds nobody to talk to; these do: {', '.join(known)}."
        )
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise UsageError("--prompt is empty: give it a question.")
    if not arguments.temperature >= 0 or not 0 < arguments.top_p <= 1:
        raise UsageError("--temperature must be 0 or more, --top-p in 0 to 1.")
    if not arguments.max_new_tokens:
        raise UsageError("--max-new-tokens must be 1 or more.")
    # With --prompt only the answer goes to standard output.
    say = aside if arguments.prompt is not None else print
    speaker = talk.speaker(target, config, arguments.seed, say, arguments.format)
    if config.profile == "smoke" and speaker.name in STAGES:
        say("The smoke profile learns next to nothing: do not expect sense.")
    options = {
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "max_new_tokens": arguments.max_new_tokens,
    }
    if arguments.prompt is not None:
        messages = [{"role": "user", "content": arguments.prompt}]
        print(speaker.answer(messages, seed=arguments.seed, **options))
        return
    does = "continues your text" if speaker.plain else "answers"
    print(f"{speaker.name} {does}. {talk.COMMANDS}")
    if speaker.name in STAGES:
        print("It knows a village. Try:", "  ".join(talk.examples()))
    talk.converse(speaker, seed=arguments.seed, **options)


def export(arguments: argparse.Namespace) -> None:
    """Write a stage or a checkpoint for transformers, TRL and vLLM."""
    import torch

    from cria import manner, real_weights, stages

    config, target = config_of(arguments.profile), arguments.target
    known = [name for name, stage in stages.STAGES.items() if stage.speaks]
    path = Path(target).expanduser()
    if target not in known and not path.exists():
        raise UsageError(names.unknown("stage or checkpoint", target, known))
    if not arguments.shard_gb > 0:
        raise UsageError("--shard-gb must be above 0.")
    if target in known:
        path = stages.get(target, config, arguments.seed, say=aside).path
    folder = path / "model" if (path / "model").is_dir() else path
    tokenizer = manner.vocabulary(folder)
    way = manner.manner(folder, config.sft.separator, arguments.format)
    real_weights.export(
        folder,
        arguments.out,
        tokenizer,
        dtype=arguments.dtype and getattr(torch, arguments.dtype),
        chat=not way.plain,
        shard_bytes=arguments.shard_gb * 1e9,
    )
    print(f"{arguments.out} is written: transformers, TRL and vLLM open it.")


def plan(arguments: argparse.Namespace) -> None:
    """What a profile's stages take on GPUs: memory, FLOPs, hours, energy."""
    from cria import scale

    config = config_of(arguments.profile)
    if arguments.gpus == 0:
        raise UsageError("--gpus must be 1 or more.")
    if not 0 < arguments.mfu <= 1:
        raise UsageError("--mfu must be above 0, at most 1.")
    gpu = understood(scale.find, arguments.gpu).name
    made = scale.plan(config, arguments.gpus, gpu, arguments.mfu)
    print(json.dumps(scale.to_dict(made), indent=1) if arguments.json else made)
