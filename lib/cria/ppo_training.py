"""Training by PPO, V5 (paper §3.2.3): sample, reward, advantage, update, look."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from cria import resume
from cria.actor_critic import ActorCritic, answer_logprobs
from cria.averaging import move_toward
from cria.config import PPOConfig
from cria.model import Llama
from cria.optim import adamw, clip_, lr_at
from cria.ppo import kl, ppo_loss
from cria.ppo_rollout import Experience, Scorer, experience, lay_out, read, sampled
from cria.progress import Progress
from cria.tokenizer import Tokenizer
from cria.training import Batch, TrainingError, lm_loss, pick_dtype
from cria.world.prompts import Prompt

__all__ = ["best_look", "look", "ppo_step", "stop", "train_ppo", "update"]


def train_ppo(
    policy: Llama,
    score: Scorer,
    vocabulary: Tokenizer,
    ask: Callable[[int], Sequence[Prompt]],
    dev: Sequence[Prompt],
    config: PPOConfig,
    *,
    seed: int,
    texts: Callable[[int], Batch] | None = None,
    watch: Callable[[Llama], dict[str, float]] = lambda policy: {},
    out: Path | None = None,
    label: str = "PPO",
    progress: bool = True,
) -> list[dict]:
    """Train ``policy`` in place, and leave it as its mean at the best look; the rows.

    The mean is a running one of the policies so far, the start among them, and it is
    what looks see. Steps at a high rate wander; their mean earns as much, and stays
    closer to the start (`cria.averaging`).

    score: raw R_c of answers.  ask(i): the prompts of iteration i.  dev: prompts that
    are only looked at, every `config.dev_every` iterations.  texts(k): rows of texts
    (`packing.batches`) that gradient step k also foretells, with the weight
    `config.text_coef`.  watch: more numbers for each look; nothing is chosen by them.

    Row i tells of iteration i, row 0 of the start; looks are in the columns dev_….
    With ``out``, each look leaves a checkpoint there. A killed run goes on from the
    last one and ends where it would have ended.
    """
    actor, reference = ActorCritic(policy), copy.deepcopy(policy).eval()
    optimizer, mean = optimizer_of(actor, config), copy.deepcopy(policy).eval()
    saved = _Saved(out, actor, mean, optimizer, config, seed, ask(0), vocabulary)
    rows = saved.load() or [{"iteration": 0}]
    done = len(rows) - 1
    with Progress(label, config.iterations, done=done, silent=not progress) as lines:
        while True:
            i = len(rows) - 1
            due = i % config.dev_every == 0 or i == config.iterations
            if due and "dev_score" not in rows[-1]:
                seen = look(mean, reference, score, vocabulary, dev, config, seed)
                rows[-1] |= seen | watch(mean)
                saved.save(rows, better=best_look(rows, config.kl_budget) == i)
            if stop(rows, config):
                break
            now = _seed(seed, i)
            batch = experience(actor, reference, score, vocabulary, ask(i), config, now)
            set_lr(optimizer, lr_at(i, config.optim, config.iterations))
            metrics = update(actor, optimizer, batch, config, now, i, texts)
            move_toward(mean, policy, 1 - config.average)
            rows.append({"iteration": i + 1, **batch.summary(), **metrics})
            lines.step(
                i + 1, f"score {rows[-1]['score']:.2f}", f"KL {rows[-1]['kl']:.2f}"
            )
    policy.load_state_dict(saved.best.state_dict())
    policy.eval()
    return rows


def optimizer_of(actor: ActorCritic, config: PPOConfig) -> torch.optim.Optimizer:
    """AdamW for the network; the last norm's gains and the value head have groups of
    their own, in this order at the end.

    Adam moves a weight by about its rate a step, however much there is to gain. The
    gains scale all logits: how sure the policy is of its words, whatever is asked, lies
    in these D numbers, and at the rate of the others they would hardly move. Theirs
    reaches `config.gain_lr`. The head is new and has little time: it learns at the
    constant `config.value_lr`.
    """
    optimizer = adamw(actor.policy, config.optim)
    gains = actor.policy.norm.weight
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not gains]
    times = config.gain_lr / config.optim.lr
    own = {"weight_decay": 0.0}
    fast = {"params": [gains], "lr": config.gain_lr, "times": times}
    optimizer.add_param_group({**fast, **own})
    head = {"params": list(actor.value.parameters()), "lr": config.value_lr}
    optimizer.add_param_group({**head, **own})
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The network's learning rate, and the gains' in proportion; not the head's."""
    for group in optimizer.param_groups[:-1]:
        group["lr"] = lr * group.get("times", 1.0)


def update(
    actor: ActorCritic,
    optimizer: torch.optim.Optimizer,
    known: Experience,
    config: PPOConfig,
    seed: int,
    iteration: int = 0,
    texts: Callable[[int], Batch] | None = None,
) -> dict[str, float]:
    """`config.epochs` passes over a batch in mini-batches; the mean metrics."""
    parts = [
        part
        for epoch in range(config.epochs)
        for part in known.minibatches(config.minibatch_size, seed + epoch)
    ]
    steps = [
        ppo_step(actor, optimizer, part, config, text=texts and texts(k))
        for k, part in enumerate(parts, iteration * len(parts))
    ]
    return {name: sum(m[name] for m in steps) / len(steps) for name in steps[0]}


def ppo_step(
    actor: ActorCritic,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: PPOConfig,
    text: Batch | None = None,
) -> dict[str, float]:
    """One gradient step on a mini-batch, and on rows of texts beside; its metrics."""
    bf16 = pick_dtype(config.dtype) is torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, bf16):
        logprobs, values, _ = actor(batch["ids"], batch["doc_ids"], batch["mask"])
    loss, metrics = ppo_loss(
        logprobs, values, batch, clip=config.clip, value_coef=config.value_coef
    )
    if text is not None and config.text_coef > 0:
        with torch.autocast("cpu", torch.bfloat16, bf16):
            logits = actor.policy(text["ids"], text["doc_ids"])
        text_loss = lm_loss(logits, text["ids"], text["loss_mask"])
        metrics["text_loss"] = float(text_loss.detach())
        loss = loss + config.text_coef * text_loss
    loss.backward()
    metrics["grad_norm"] = clip_(actor.parameters(), config.optim.grad_clip)
    if not math.isfinite(metrics["grad_norm"]):
        optimizer.zero_grad()
        raise TrainingError(
            "PPO: the gradient is not finite, so training stopped with the weights "
            "before that step; try a lower learning rate."
        )
    optimizer.step()
    optimizer.zero_grad()
    return metrics


def look(
    policy: Llama,
    reference: Llama,
    score: Scorer,
    vocabulary: Tokenizer,
    dev: Sequence[Prompt],
    config: PPOConfig,
    seed: int,
) -> dict[str, float]:
    """Score, KL to the reference (k3, nats an answer) and length on held-out prompts.

    The same random numbers at every look, so that looks differ by the policy alone.
    """
    prompts, answers, finished = sampled(policy, vocabulary, dev, config, seed)
    batch = lay_out(prompts, answers)
    logprobs, ref = (
        read(lambda *x, net=net: (answer_logprobs(net, *x),), batch, config.dtype)[0]
        for net in (policy, reference)
    )
    k3 = torch.where(batch["mask"], kl(logprobs, ref, "k3"), 0.0)
    return {
        "dev_score": float(torch.tensor(score(dev, answers)).mean()),
        "dev_kl": float(k3.sum(1).mean()),
        "dev_length": float(batch["mask"].sum(1).float().mean()),
        "dev_unfinished": float((~finished).float().mean()),
    }


def best_look(rows: Sequence[dict], kl_budget: float) -> int:
    """The iteration with the highest held-out score within the budget of KL.

    The start is within any budget.
    """
    looks = [r for r in rows if "dev_score" in r]
    within = [r for r in looks if r["dev_kl"] <= kl_budget or r is looks[0]]
    return max(within, key=lambda r: r["dev_score"])["iteration"]


def stop(rows: Sequence[dict], config: PPOConfig) -> bool:
    """Time to stop: `patience` looks without a better one, or all iterations done."""
    best = best_look(rows, config.kl_budget)
    since = sum("dev_score" in r for r in rows if r["iteration"] > best)
    return since >= config.patience or len(rows) > config.iterations


class _Saved:
    """The run on disk, in one file: actor, mean, optimizer, rows, and the best mean."""

    def __init__(self, out, actor, mean, optimizer, config, seed, first, vocabulary):
        self.best = copy.deepcopy(mean)
        self.whole = nn.ModuleDict({"actor": actor, "mean": mean, "best": self.best})
        self.out, self.mean, self.optimizer = out, mean, optimizer
        settings = {"seed": seed, **{k: str(v) for k, v in asdict(config).items()}}
        asked = " ".join(p.id for p in first).encode()
        self.run = resume.describe_run(
            actor,
            config.optim,
            {"first prompts": torch.frombuffer(bytearray(asked), dtype=torch.uint8)},
            settings,
        )

    def load(self) -> list[dict]:
        if self.out is None:
            return []
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            state = resume.load(self.out, self.whole, self.optimizer, self.run)
        except ValueError as error:
            raise TrainingError(str(error)) from None
        return state.rows if state else []

    def save(self, rows: list[dict], better: bool) -> None:
        if better:
            self.best.load_state_dict(self.mean.state_dict())
        if self.out is not None:
            state = resume.State(step=len(rows) - 1, rows=rows)
            resume.save(self.out, self.whole, self.optimizer, self.run, state)
            resume.write_csv(self.out, rows)


def _seed(seed: int, iteration: int) -> int:
    return (seed + 1) * 100_003 + iteration
