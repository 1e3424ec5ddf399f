"""TRL's experimental PPO as the oracle of our advantages, losses and KL.

TRL runs one real iteration in a process of its own (this file, started as a script:
see test_reward_trl.py) and writes down the tensors that pass through its helpers.
Here they go through `cria.ppo`.

Where the two define different things, and so are not compared:
- TRL puts the reward of an answer with EOS one slot *behind* it, and bootstraps from
  the value there; we put it at EOS. They agree on answers without EOS (rows that fill
  the width), so the advantages are compared on those.
- TRL takes the critic's error over that slot as well. The losses are compared with
  TRL's own masks.
- TRL's whitening divides by n − 1, ours by n.
- `whiten_rewards` whitens what is left after the KL, token by token, and adds the mean
  back. Llama 2 whitens scores of whole answers before the KL: there is nothing in TRL
  to compare `whiten(scores)` with.
- TRL's `approxkl` is k2 over padding too; ours is k3 over actions.
"""

import os
import subprocess
import sys
import tempfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from cria.ppo import (
    gae,
    kl,
    masked_mean,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)

PIECES, WIDTH, ROWS = 40, 12, 16
BOS, EOS, PAD = 1, 2, PIECES  # PAD is no piece of the model: it cannot be sampled
CLIP, VALUE_CLIP, BETA, LAM = 0.2, 0.3, 0.05, 0.9
STEPS = 4  # gradient steps on the one batch


def trl_side(path):
    """The tensors of one iteration of TRL's PPOTrainer, as a safetensors file."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # no look-up
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL would send a ping
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers import LlamaForSequenceClassification as Scalar
    from transformers import PreTrainedTokenizerFast as Fast
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    def made(kind, seed, **more):
        torch.manual_seed(seed)
        model = kind(
            LlamaConfig(
                vocab_size=PIECES,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                bos_token_id=BOS,
                eos_token_id=EOS,
                pad_token_id=None,
                **more,
            )
        )
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() == 2:
                    p.mul_(8)
        return model

    found = {}

    def note(name, tensor):
        found.setdefault(name, []).append(tensor.detach().clone())

    def noted(function, *names):
        """The function, its result and its arguments written down."""

        def wrapped(*args, **kwargs):
            for i, name in enumerate(names[1:]):
                note(name, args[i])
            result = function(*args, **kwargs)
            note(names[0], result)
            return result

        return wrapped

    def rewarded(*args):
        values, scores, lengths = get_reward(*args)
        note("heads", values[:, args[3] - 1 : -1, 0])  # of the critic, then the RM
        note("scores", scores)
        return values, scores, lengths

    def read(model, rows, pad):
        result = forward(model, rows, pad)
        if isinstance(result, tuple):  # policy and critic, not the reference
            note("new_values", result[1][:, -WIDTH - 1 : -1, 0])
        return result

    forward, ppo_trainer.forward = ppo_trainer.forward, read
    ppo_trainer.np.random.permutation = range  # rows stay where they are
    get_reward = ppo_trainer.get_reward
    ppo_trainer.get_reward = rewarded
    ppo_trainer.selective_log_softmax = noted(
        ppo_trainer.selective_log_softmax, "logprobs"
    )
    ppo_trainer.masked_mean = noted(ppo_trainer.masked_mean, "means", "terms", "masks")
    ppo_trainer.masked_whiten = noted(
        ppo_trainer.masked_whiten, "whitened", "advantages", "actions"
    )

    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, PIECES, (ROWS, 5), generator=generator).tolist()
    pieces = {f"t{i}": i for i in range(PIECES + 1)}
    tokenizer = Fast(
        tokenizer_object=Tokenizer(models.WordLevel(pieces, unk_token="t0")),
        bos_token=f"t{BOS}",
        eos_token=f"t{EOS}",
        pad_token=f"t{PAD}",
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder,
                total_episodes=ROWS,
                per_device_train_batch_size=ROWS,
                gradient_accumulation_steps=1,
                num_mini_batches=1,
                num_ppo_epochs=STEPS,
                response_length=WIDTH,
                temperature=1.0,
                stop_token="eos",
                missing_eos_penalty=None,
                kl_coef=BETA,
                cliprange=CLIP,
                cliprange_value=VALUE_CLIP,
                vf_coef=0.1,
                gamma=1.0,
                lam=LAM,
                learning_rate=0.02,
                num_sample_generations=0,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            processing_class=tokenizer,
            model=made(LlamaForCausalLM, 0),
            ref_model=made(LlamaForCausalLM, 1),
            reward_model=made(Scalar, 2, num_labels=1),
            value_model=made(Scalar, 3, num_labels=1),
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            eval_dataset=Dataset.from_dict({"input_ids": prompts}),
        )
        losses, logged = [], {}
        trainer.log = logged.update
        backward = trainer.accelerator.backward
        trainer.accelerator.backward = lambda x: (
            losses.append(x.detach()),
            backward(x),
        )
        trainer.train()

    old, ref, *new = found["logprobs"]
    values, _ = found["heads"]
    kept = {
        "logprobs": old,
        "ref": ref,
        "new": torch.stack(new),
        "values": values,
        "new_values": torch.stack(found["new_values"]),
        "kl": torch.tensor(logged["objective/kl"]),
        "scores": found["scores"][1],
        "advantages": found["advantages"][0],
        "actions": found["actions"][0],
        "whitened": found["whitened"][0],
        "losses": torch.stack(losses),
    }
    # Four means a step: critic and its clip fraction, policy and its clip fraction;
    # the first mean of all belongs to the whitening.
    first = len(found["means"]) - 4 * STEPS
    for i, name in enumerate(("critic", "critic_clipped", "policy", "policy_clipped")):
        for what in ("means", "terms", "masks"):
            kept[f"{name}_{what}"] = torch.stack(found[what][first + i :: 4])
    save_file({name: x.contiguous() for name, x in kept.items()}, path)


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    path = tmp_path_factory.mktemp("trl") / "found.safetensors"
    done = subprocess.run(
        [sys.executable, __file__, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return load_file(path)


def whole(trl):
    """Rows that fill the width: their reward sits where ours does."""
    rows = trl["actions"].all(1)
    assert 3 < rows.sum() < ROWS - 2
    return rows


def advantages(trl, mask):
    k1 = torch.where(trl["actions"], kl(trl["logprobs"], trl["ref"]), 0.0)
    rewards = token_rewards(trl["scores"], k1, mask, BETA)
    return gae(rewards, trl["values"], mask, 1.0, LAM)[0]


def test_the_kl_of_an_answer_is_trls(trl):
    found = torch.where(trl["actions"], kl(trl["logprobs"], trl["ref"]), 0.0)
    assert trl["kl"].abs() > 1
    torch.testing.assert_close(found.sum(1).mean(), trl["kl"])


def test_advantages_are_trls_where_the_reward_sits_in_the_same_slot(trl):
    rows = whole(trl)
    found = advantages(trl, trl["actions"])
    assert trl["advantages"][rows].std() > 0.3
    torch.testing.assert_close(found[rows], trl["advantages"][rows])
    short = ~rows[:, None] & trl["actions"]
    assert (found - trl["advantages"])[short].abs().max() > 0.01


def test_elsewhere_they_are_trls_once_the_slot_behind_eos_is_an_action(trl):
    """That slot is all that parts the two: with it every row agrees."""
    found = advantages(trl, trl["critic_masks"][0])
    inside = trl["actions"]
    torch.testing.assert_close(found[inside], trl["advantages"][inside])


def test_whitening_is_trls_but_for_the_n_it_divides_by(trl):
    mask = trl["actions"]
    n = mask.sum()
    found = whiten(trl["advantages"], mask) * ((n - 1) / n).sqrt()
    torch.testing.assert_close(found[mask], trl["whitened"][mask])


@pytest.mark.parametrize("step", range(STEPS))
def test_the_policys_loss_and_clip_fraction_are_trls(trl, step):
    mask = trl["policy_masks"][step]
    assert torch.equal(mask, trl["actions"])
    loss, metrics = policy_loss(
        trl["new"][step], trl["logprobs"], trl["whitened"], mask, CLIP
    )
    torch.testing.assert_close(loss, trl["policy_means"][step], atol=1e-6, rtol=1e-5)
    clipped = float(trl["policy_clipped_means"][step])
    assert metrics["clip_fraction"] == pytest.approx(clipped)
    assert (clipped > 0.1) is (step > 0)


@pytest.mark.parametrize("step", range(STEPS))
def test_the_critics_loss_is_trls(trl, step):
    mask, values = trl["critic_masks"][step], trl["values"]
    values = torch.where(mask, values, 0.0)
    loss = value_loss(
        trl["new_values"][step], values, trl["advantages"] + values, mask, VALUE_CLIP
    )
    torch.testing.assert_close(loss, 0.5 * trl["critic_means"][step])
    assert (trl["critic_clipped_means"][step] > 0.1) == (step > 0)
    both = trl["policy_means"][step] + 0.1 * loss
    torch.testing.assert_close(both, trl["losses"][step])


def test_a_mean_over_actions_is_trls(trl):
    found = masked_mean(trl["policy_terms"][1], trl["actions"])
    torch.testing.assert_close(found, trl["policy_means"][1])


if __name__ == "__main__":
    trl_side(sys.argv[1])
