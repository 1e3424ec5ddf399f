"""Train a stage under torchrun.

    torchrun --nproc-per-node 2 -m cria.scale.launch base --profile smoke --out run

What stops half-way goes on with the same command, also on more or fewer processes.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import yaml

from cria import config as configs
from cria import ppo_stage, reward, stages, world
from cria.config import Config
from cria.manner import vocabulary
from cria.ppo_rollout import Scorer
from cria.ppo_training import best_look
from cria.real_weights import weights
from cria.scale import keeping, loop, ppo
from cria.scale.group import Group, join
from cria.scale.job import Inputs, check_vocabulary
from cria.scale.jobs import JOBS
from cria.scale.sharding import shard, whole
from cria.tokenizer import Tokenizer
from cria.world.prompts import mixture

PPO, NEWEST = "ppo_v5", "v4"
STARTS = {"sft_a": "base", "rm_helpful": "sft_a", "rm_safety": "sft_a", PPO: NEWEST}
LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "process group")
STOPPED = 130  # the exit code of a run that was asked to stop, as after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """One process' part; the exit code."""
    given = _parser().parse_args(argv)
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    me = f"process {rank} of {size}"
    # A score is a view of the head's output; nothing here is changed in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* a view")
    try:
        _check_options(given)
        config = configs.load(given.profile, **_changes(given))
        inputs = _inputs(given, config)  # stages that lack are built one by one
        with join() as group:
            _train(given, config, inputs, group)
        return 0
    except loop.Stopped as error:
        if rank == "0":
            print(f"cria: {error}", file=sys.stderr, flush=True)
        return STOPPED
    except (ValueError, OSError, RuntimeError) as error:
        if given.debug:
            raise
        print(f"cria: {me}: {_what(error, given.out)}", file=sys.stderr, flush=True)
        return 1


def _train(given, config: Config, inputs: Inputs, group: Group) -> None:
    if given.stage == PPO:
        _train_ppo(given, config, inputs, group)
        return
    job = JOBS[given.stage](config, given.seed, inputs)
    for note in job.notes if group.chief else ():
        print(f"{given.stage}: {note}", flush=True)
    dtype = given.dtype or getattr(config, _section(given.stage)).dtype
    model = shard(job.model, group, dtype=dtype, recompute=given.recompute)
    if keeping.newest(given.out) is None:  # else the checkpoint brings the weights
        job.begin(model)
    rows = loop.train(
        model,
        job.batches,
        job.loss_fn,
        job.optim,
        job.steps if given.stage == "base" else given.steps or job.steps,
        group=group,
        out=given.out,
        seed=given.seed,
        dtype=dtype,
        accumulate=given.accumulate,
        log_every=given.log_every,
        checkpoint_every=given.checkpoint_every,
        label=given.stage,
    )
    found = whole(model, group)
    if group.chief:
        job.save(found, given.out / "model")
        print(
            f"{given.stage}: loss {rows[-1]['loss']:.4f} after {rows[-1]['step']} "
            f"steps on {_count(group.size)}; {given.out / 'model'} is written.",
            flush=True,
        )


def _train_ppo(given, config: Config, inputs: Inputs, group: Group) -> None:
    c, seed, village = config.ppo, given.seed, world.load()
    start = weights(inputs.start)
    check_vocabulary(inputs.tokenizer, start.config)
    rows = ppo.train_ppo(
        start.config,
        start.get,
        _scorer(given, config, inputs) if group.chief else None,
        inputs.tokenizer,
        ppo_stage.asked(village, config, c.batch_size, seed),
        mixture(village, "dev", c.dev_prompts, dict(c.kinds), seed),
        c,
        group=group,
        out=given.out,
        seed=seed,
        texts=ppo_stage.texts(village, config, inputs.tokenizer, seed),
        dtype=given.dtype or c.dtype,
        recompute=given.recompute,
    )
    if group.chief:
        best = best_look(rows, c.kl_budget)
        print(
            f"{PPO}: the policy of iteration {best} scored "
            f"{rows[best]['dev_score']:.3f}; {given.out / ppo.BEST} is written.",
            flush=True,
        )


def _scorer(given, config: Config, inputs: Inputs) -> Scorer:
    """R_c by the reward models of the newest round, or by two of one's own."""
    if given.judges:
        rms = tuple(reward.load(path) for path in given.judges)
    else:
        rms = ppo_stage.judges(stages.get(NEWEST, config, given.seed, say=_silent))
    return ppo_stage.scorer(rms, inputs.tokenizer, config.ppo.safety_gate)


def _inputs(given, config: Config) -> Inputs:
    """Where to start, from the command line or from the stages of the course."""

    def stage(name: str) -> Path:
        say = print if os.environ.get("RANK", "0") == "0" else _silent
        return stages.get(name, config, given.seed, say=say).path

    start, needs = given.weights, STARTS.get(given.stage)
    if start is None and needs is not None:
        start = stage(needs) / "model"
    if given.tokenizer is not None:
        tokenizer = Tokenizer(given.tokenizer)
    else:
        tokenizer = vocabulary(start or stage("tokenizer"))
    from_stage = given.stage.startswith("rm_") and given.data is None
    comparisons = stage("preferences") if from_stage else None
    return Inputs(tokenizer, start, given.data, comparisons)


def _changes(given) -> dict:
    """--set KEY=VALUE, and --steps, which says how much pre-training reads."""
    changes = {}
    for text in given.set:
        key, _, value = text.partition("=")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"--set {text}: expected KEY=VALUE.") from None
    if given.steps and given.stage == "base":
        changes["pretrain.steps"] = given.steps
    return changes


def _check_options(given) -> None:
    """ValueError for an option that the stage would pass over in silence."""
    asked = {"--data": given.data, "--steps": given.steps, "--judges": given.judges}
    asked["--accumulate"] = given.accumulate != 1
    foreign = ["--judges"] if given.stage != PPO else ["--data", "--steps"]
    if given.stage == PPO:
        foreign.append("--accumulate")
    for option in foreign:
        if asked[option]:
            hint = "; its lengths are ppo.… of --set" if given.stage == PPO else ""
            raise ValueError(f"{given.stage} has no use for {option}{hint}.")


def _section(stage: str) -> str:
    return {"base": "pretrain", "sft_a": "sft"}.get(stage, "reward")


def _count(processes: int) -> str:
    return "one process" if processes == 1 else f"{processes} processes"


def _silent(line: str) -> None:
    """Only one process tells what all do."""


def _what(error: Exception, out: Path) -> str:
    """What happened and what to do, in one sentence."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError) or not any(
        word in text.lower() for word in LOST
    ):
        return text
    last = keeping.newest(out)
    kept = "there is no checkpoint yet"
    if last is not None:
        kept = f"{last} is whole: the same command goes on from there"
    return f"another process is gone, so this one stops; {kept}."


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchrun … -m cria.scale.launch", description="Train under torchrun."
    )
    add = parser.add_argument
    add("stage", choices=[*JOBS, PPO])
    add("--profile", default="course", help="as for cria run, or a YAML file")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change it")
    add("--seed", type=int, default=0)
    add("--out", type=Path, required=True, help="a folder that all processes see")
    add("--weights", type=Path, help="first weights: a folder of ours, Meta's, HF's")
    add("--tokenizer", type=Path, help="default: the one beside the first weights")
    add("--data", type=Path, help="base: .npy; sft_a: .jsonl; rm_…: .jsonl")
    two = ("HELPFUL", "SAFETY")
    add("--judges", type=Path, nargs=2, metavar=two, help="reward models for PPO")
    add("--steps", type=_positive, help="default: what the profile says")
    add("--dtype", choices=("auto", "float32", "bfloat16"), help="of the products")
    add("--recompute", action="store_true", help="activation checkpointing")
    add("--accumulate", type=_positive, default=1, help="parts of a process' rows")
    add("--checkpoint-every", type=_positive, default=250, metavar="STEPS")
    add("--log-every", type=_positive, default=10, metavar="STEPS")
    add("--debug", action="store_true", help="show full tracebacks")
    return parser


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what is left of a broken group must not keep the job waiting
