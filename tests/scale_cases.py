"""Small runs that `test_scale_processes` trains twice: in one process and in many.

As a script it is one process of torchrun: `scale_cases.py FOLDER CASE …` trains every
case with `cria.scale` and leaves what came out in the folder.
"""

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from cria import (
    checkpoints,
    config,
    packing,
    ppo_training,
    reward_data,
    sft,
    tokenizer,
    training,
)
from cria.actor_critic import ActorCritic
from cria.config import ModelConfig, OptimConfig
from cria.model import Llama
from cria.ppo_rollout import lay_out
from cria.reward import RewardModel
from cria.reward_training import reward_loss

# 97 and 43 divide by neither 2 nor 3: no process gets as many rows as the others.
SHAPE = ModelConfig(32, 2, 4, 2, 97, multiple_of=43, max_seq_len=64)
OPTIM = OptimConfig(lr=5e-3, warmup_steps=2, grad_clip=0.5)
STEPS = 4
PPO = dataclasses.replace(
    config.load("smoke").ppo, dtype="float32", optim=OPTIM, average=0.0
)


def random_ids(n, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 97, (n, length), generator=generator)


def lm_loss(model, batch):
    loss = training.lm_loss(model(batch["ids"]), batch["ids"], batch["loss_mask"])
    return loss, {"rows": float(len(batch["ids"]))}


def text_batches(rows):
    def batch(step):
        ids = random_ids(rows, 24, seed=step)
        return {"ids": ids, "loss_mask": torch.ones_like(ids, dtype=torch.bool)}

    return batch


def documents():
    """Of very different lengths, so that rows differ in what they predict."""
    ids = random_ids(40, 30).tolist()
    for i, row in enumerate(ids):
        length = 4 + (i * 7) % 26
        yield row[:length], [t >= length - 1 - i % 5 for t in range(length)]


def pairs(n=24):
    ids = random_ids(n, 20, seed=3).tolist()
    rows = [
        (row[: 3 + i % 4], (row[8 : 11 + i % 5], row[14:])) for i, row in enumerate(ids)
    ]
    # Labels come unevenly: some rows have none, some batches one unsafe answer.
    safe = torch.tensor([[1, 1], [-1, -1], [1, 0], [1, 1], [1, -1], [0, 0]] * (n // 6))
    margin = torch.linspace(0, 1, n)
    return reward_data.Pairs(rows, margin, safe)


def answers(step):
    """A mini-batch of PPO, with answers of different lengths."""
    ids = random_ids(5, 20, seed=step).tolist()
    batch = lay_out([r[:4] for r in ids], [r[4 : 6 + 3 * i] for i, r in enumerate(ids)])
    generator = torch.Generator().manual_seed(step)

    def noise(scale):
        x = torch.randn(batch["mask"].shape, generator=generator) * scale
        return torch.where(batch["mask"], x, 0.0)

    batch |= {"logprobs": noise(0.1) - 4.5, "advantages": noise(1.0)}
    return batch | {"values": noise(0.1), "returns": noise(1.0)}


def ppo_run():
    """(first policy, score, vocabulary, ask, dev, config) of a whole run of PPO."""
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = tokenizer.train(
            ["a b c d e f g"] * 9, 280, Path(folder) / "t.model"
        )
        vocabulary.path = Path("t.model")  # it is in memory by now
    shape = dataclasses.replace(SHAPE, vocab_size=280)

    def ask(i, n=6):
        return [
            SimpleNamespace(
                id=f"{i}-{k}",
                messages=[{"role": "user", "content": "abcd"[: 1 + k % 4]}],
            )
            for k in range(n)
        ]

    def score(prompts, answers):  # likes even tokens
        return [sum(1 - 2 * (t % 2) for t in ids) / 4 for ids in answers]

    settings = dataclasses.replace(
        PPO, batch_size=6, minibatch_size=3, iterations=3, epochs=2, dev_every=2,
        max_new_tokens=6, kl_budget=50.0,
    )  # fmt: skip
    return Llama(shape, seed=4), score, vocabulary, ask, ask(-1, 8), settings


def llama():
    return Llama(SHAPE, seed=1)


def reward_model(own):
    return RewardModel(llama(), own_logprob=own, seed=2)


PACKED = packing.batches(packing.pack(documents(), 32), 5, seed=0)
PAIRS = reward_data.batches(pairs(), 5, seed=0)
CASES = {  # name: (model, batches, loss, accumulate)
    "text": (llama, text_batches(4), lm_loss, 1),
    "one row": (llama, text_batches(1), lm_loss, 1),
    "accumulate": (llama, text_batches(5), lm_loss, 2),
    "sft": (llama, PACKED, sft.sft_loss, 1),
    "rm": (lambda: reward_model(True), PAIRS, reward_loss(0.0, 0.3), 1),
    "rm safety": (lambda: reward_model(False), PAIRS, reward_loss(0.3), 1),
}


def alone(name):
    """The run in one process, by the course's own code: (rows, weights)."""
    if name == "ppo":
        actor = ActorCritic(llama())
        optimizer = ppo_training.optimizer_of(actor, PPO)
        rows = [
            ppo_training.ppo_step(actor, optimizer, answers(step), PPO, PACKED(step))
            for step in range(STEPS)
        ]
        return rows, dict(actor.state_dict())
    if name == "ppo run":
        policy, *rest = ppo_run()
        rows = ppo_training.train_ppo(
            policy, *rest, seed=3, texts=PACKED, progress=False
        )
        return rows, dict(policy.state_dict())
    build, batches, loss_fn, _ = CASES[name]
    model = build()
    rows = training.train(
        model, batches, loss_fn, OPTIM, STEPS, dtype="float32", log_every=1,
        progress=False,
    )  # fmt: skip
    return rows, dict(model.state_dict())


def together(name, group, **options):
    """The same run by `cria.scale`: (rows, weights); weights for the chief alone."""
    from cria.scale import jobs_reward, loop, ppo, sharding

    if name == "ppo":
        first = ActorCritic(llama()).state_dict()
        actor = sharding.shard(ppo.Actor(llama()), group, **options)
        sharding.fill(actor, first.__getitem__)
        optimizer = ppo_training.optimizer_of(actor, PPO)
        rows = [
            ppo.ppo_step(actor, optimizer, answers(step), PPO, group, PACKED(step))
            for step in range(STEPS)
        ]
        return rows, sharding.whole(actor, group)
    if name == "ppo run":
        policy, score, *rest = ppo_run()
        out = Path(tempfile.mkdtemp()) if group.chief else None
        out = group.tell(out)
        rows = ppo.train_ppo(
            policy.config, policy.state_dict().__getitem__,
            score if group.chief else None, *rest,
            group=group, out=out, seed=3, texts=PACKED, progress=False,
        )  # fmt: skip
        best = checkpoints.load(out / ppo.BEST).state_dict() if group.chief else {}
        return rows, dict(best)
    build, batches, loss_fn, accumulate = CASES[name]
    if name == "rm safety":
        loss_fn = jobs_reward.reward_loss(0.3)
        batches = jobs_reward.with_safety_weights(batches)
    first = build().state_dict()
    model = sharding.shard(build(), group, **options)
    if isinstance(model, Llama):
        sharding.first_weights(model, seed=1)
    else:
        sharding.fill(model, first.__getitem__)
    rows = loop.train(
        model, batches, loss_fn, OPTIM, STEPS, group=group, log_every=1,
        accumulate=accumulate, progress=False,
    )  # fmt: skip
    return rows, sharding.whole(model, group)


def main(out, *names):
    from cria.scale.group import join

    torch.set_num_threads(1)
    with join(patience=120) as group:
        for name in names:
            case, _, way = name.partition("+")
            options = {
                "": {},
                "recompute": {"recompute": True},
                "bfloat16": {"dtype": "bfloat16"},
            }[way]
            rows, weights = together(case, group, **options)
            if group.chief:
                (out / f"{name}.json").write_text(json.dumps(rows))
                save_file(weights, out / f"{name}.safetensors")
        group.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as `cria.scale.launch` does: gloo's threads may abort an orderly exit
