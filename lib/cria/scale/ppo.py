"""PPO on many processes (paper §3.2.3): `cria.ppo_training`, with the update dealt out.

The chief plays the sampler: it gets the whole weights, samples, scores and works out
the advantages, and tells the others. That is exact, and at our size as quick as any
other way. At full size an inference engine samples, and takes the new weights over
in Hugging Face's layout (`cria.real_weights.export_model`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from cria import checkpoints, resume
from cria.actor_critic import ActorCritic
from cria.config import ModelConfig, PPOConfig
from cria.model import Llama
from cria.optim import clip_, lr_at
from cria.ppo import ppo_loss
from cria.ppo_rollout import Scorer, experience
from cria.ppo_training import _seed, best_look, look, optimizer_of, set_lr, stop
from cria.progress import Progress
from cria.scale import keeping
from cria.scale.group import Group
from cria.scale.job import empty, filled
from cria.scale.loop import gradient
from cria.scale.sharding import fill, shard, whole
from cria.tokenizer import Tokenizer
from cria.training import Batch, TrainingError, lm_loss
from cria.world.prompts import Prompt

__all__ = ["BEST", "Actor", "ppo_step", "train_ppo"]

BEST = "best"  # the folder of the policy at its best look so far


class Actor(ActorCritic):
    """An `ActorCritic` that is also asked for the logits of a text, by a method of its
    own: FSDP gathers weights only for methods that it knows."""

    def foretell(self, ids: Tensor, doc_ids: Tensor) -> Tensor:
        """(B, T) twice → logits (B, T, V)."""
        return self.policy(ids, doc_ids)


def train_ppo(
    shape: ModelConfig,
    start: Callable[[str], Tensor],
    score: Scorer | None,
    vocabulary: Tokenizer,
    ask: Callable[[int], Sequence[Prompt]],
    dev: Sequence[Prompt],
    config: PPOConfig,
    *,
    group: Group,
    out: Path,
    seed: int,
    texts: Callable[[int], Batch] | None = None,
    dtype: str = "float32",
    recompute: bool = False,
    progress: bool = True,
) -> list[dict]:
    """PPO from the weights ``start`` (name → the whole weight); the rows.

    As `cria.ppo_training.train_ppo`, which see; only the chief needs ``score``. The
    policy of the best look is in ``out``/best. Raises ValueError if a running mean is
    asked for: none is kept here.
    """
    if config.average:
        raise ValueError(
            f"ppo.average is {config.average}, but no running mean is kept across "
            "processes; set ppo.average to 0."
        )
    actor = shard(Actor(empty(shape)), group, dtype=dtype, recompute=recompute)
    head = Actor(empty(shape)).value.state_dict()
    if keeping.newest(out) is None:
        fill(actor, lambda name: _first(name, start, head))
    optimizer = optimizer_of(actor, config)
    run = _describe(actor, config, seed, ask(0), dtype)
    try:
        state = keeping.load(out, actor, optimizer, run) or resume.State()
    except ValueError as error:
        raise TrainingError(str(error)) from None
    rows = state.rows or [{"iteration": 0}]
    chief = None
    if group.chief:
        reference = empty(shape)
        filled(
            reference, {n: start(n).float() for n, _ in reference.named_parameters()}
        )
        chief = _Chief(reference.eval(), score, vocabulary, config, out, seed)
    silent = not (progress and group.chief)
    done = len(rows) - 1
    with Progress("PPO", config.iterations, done=done, silent=silent) as lines:
        while True:
            i = len(rows) - 1
            weights = whole(actor, group)
            due = i % config.dev_every == 0 or i == config.iterations
            if due and "dev_score" not in rows[-1]:
                rows = group.tell(chief and chief.look(weights, rows, dev))
                state = resume.State(step=i + 1, rows=rows)
                keeping.save(out, actor, optimizer, run, state, group)
            if stop(rows, config):
                break
            batch, summary = group.tell(chief and chief.sample(weights, ask(i), i))
            set_lr(optimizer, lr_at(i, config.optim, config.iterations))
            parts = [
                part
                for epoch in range(config.epochs)
                for part in batch.minibatches(
                    config.minibatch_size, _seed(seed, i) + epoch
                )
            ]
            steps = [
                ppo_step(actor, optimizer, part, config, group, texts and texts(k))
                for k, part in enumerate(parts, i * len(parts))
            ]
            means = {n: sum(m[n] for m in steps) / len(steps) for n in steps[0]}
            rows.append({"iteration": i + 1, **summary, **means})
            lines.step(
                i + 1, f"score {rows[-1]['score']:.2f}", f"KL {rows[-1]['kl']:.2f}"
            )
    if group.chief:
        resume.write_csv(out, rows)
    return rows


def ppo_step(
    actor: Actor,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: PPOConfig,
    group: Group,
    text: Batch | None = None,
) -> dict[str, float]:
    """One gradient step on a mini-batch that all processes have; its metrics.

    A part counts by its actions, or by its tokens of text, as the losses are means
    over these.
    """

    def rewarded(actor: Actor, part: Batch) -> tuple[Tensor, dict]:
        logprobs, values, _ = actor(part["ids"], part["doc_ids"], part["mask"])
        return ppo_loss(
            logprobs, values, part, clip=config.clip, value_coef=config.value_coef
        )

    def read(actor: Actor, part: Batch) -> tuple[Tensor, dict]:
        loss = lm_loss(
            actor.foretell(part["ids"], part["doc_ids"]),
            part["ids"],
            part["loss_mask"],
        )
        return config.text_coef * loss, {"text_loss": float(loss.detach())}

    metrics = gradient(actor, {**batch, "loss_mask": batch["mask"]}, rewarded, group)
    if text is not None and config.text_coef > 0:
        metrics |= gradient(actor, text, read, group)
    del metrics["loss"]
    metrics["grad_norm"] = clip_(actor.parameters(), config.optim.grad_clip)
    if not math.isfinite(metrics["grad_norm"]):
        raise TrainingError(
            "PPO: the gradient is not finite, so training stopped with the weights "
            "before that step; try a lower learning rate."
        )
    optimizer.step()
    optimizer.zero_grad()
    return metrics


class _Chief:
    """What only the chief does: sampling and looking, with a whole network."""

    def __init__(self, reference: Llama, score, vocabulary, config, out, seed):
        self.reference, self.score, self.vocabulary = reference, score, vocabulary
        self.config, self.out, self.seed = config, out, seed
        self.actor = ActorCritic(copy.deepcopy(reference))

    def look(self, weights: dict, rows: list[dict], dev: Sequence[Prompt]) -> list:
        """The rows with a look in the last; the policy is kept if it is the best."""
        policy = filled(self.actor, weights).policy
        seen = look(
            policy,
            self.reference,
            self.score,
            self.vocabulary,
            dev,
            self.config,
            self.seed,
        )
        rows = [*rows[:-1], rows[-1] | seen]
        if best_look(rows, self.config.kl_budget) == rows[-1]["iteration"]:
            checkpoints.save(policy, self.out / BEST, self.vocabulary)
        return rows

    def sample(self, weights: dict, asked: Sequence[Prompt], i: int) -> tuple:
        """(experience, its summary) of one iteration."""
        found = experience(
            filled(self.actor, weights),
            self.reference,
            self.score,
            self.vocabulary,
            asked,
            self.config,
            _seed(self.seed, i),
        )
        return found, found.summary()


def _first(name: str, start: Callable[[str], Tensor], head: dict) -> Tensor:
    inner = name.removeprefix("policy.")
    return start(inner) if inner != name else head[name.removeprefix("value.")]


def _describe(actor, config: PPOConfig, seed: int, first, dtype: str) -> dict:
    settings = {"seed": seed, **{k: str(v) for k, v in asdict(config).items()}}
    asked = " ".join(p.id for p in first).encode()
    prompts = torch.frombuffer(bytearray(asked), dtype=torch.uint8)
    return resume.describe_run(
        actor, config.optim, {"first prompts": prompts}, settings | {"dtype": dtype}
    )
