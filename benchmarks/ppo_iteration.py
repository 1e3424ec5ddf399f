"""One iteration of PPO: ours against TRL's experimental PPOTrainer.

Both: 64 prompts of 32 random tokens, 32 new tokens each (nobody may stop early), one
reward model of the same shape, a reference, GAE, and 4 epochs over the batch in one
mini-batch, clipping at 1.0, AdamW. Ours is `experience` and `update`, as `train_ppo`
calls them: bfloat16 products where the CPU has them. Theirs is float32 with fused
attention (SDPA) and without activation checkpointing.

The critics are not alike: TRL's is a second network, ours a head on the policy. So a
row of the table gives ours a second network as well.
"""

import os
import sys
import tempfile
import warnings
from dataclasses import replace

# Read when huggingface_hub is first imported: no look-up, and no ping from TRL.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import peers
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    PrinterCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from cria import config, reward
from cria.actor_critic import ActorCritic
from cria.config import OptimConfig
from cria.model import Llama
from cria.ppo_rollout import experience
from cria.ppo_training import optimizer_of, update
from cria.training import pick_dtype
from cria.world.prompts import Prompt

PROMPTS, LENGTH, NEW, EPOCHS = 64, 32, 32, 4
BAR = 1.8
PPO = replace(
    config.load("course").ppo,
    batch_size=PROMPTS,
    minibatch_size=PROMPTS,
    epochs=EPOCHS,
    optim=OptimConfig(lr=1e-5, schedule="constant"),
    value_lr=1e-5,
    gain_lr=1e-5,
    text_coef=0.0,
    max_new_tokens=NEW,
)


class Vocabulary:
    """Prompts are numbers of rows of random ids; no id is the end of an answer."""

    eos_id = -1

    def __init__(self, rows):
        self.rows = rows

    def encode(self, text, bos=False, eos=False):
        return self.rows[int(text.split()[1])]


class TwoNetworks(ActorCritic):
    """An actor whose critic is a network of its own, as TRL's is."""

    def __init__(self, policy, critic):
        super().__init__(policy)
        self.value = nn.ModuleDict({"trunk": critic, "head": self.value})

    def forward(self, ids, doc_ids, mask):
        chosen = mask.nonzero(as_tuple=True)
        before = (chosen[0], chosen[1] - 1)
        h = self.policy(ids, doc_ids, hidden=True)[before]
        logprob = self.policy.output(h).float().log_softmax(-1)
        states = self.value["trunk"](ids, doc_ids, hidden=True)[before]
        with torch.autocast("cpu", enabled=False):
            value = self.value["head"](states.float())[:, 0]
        with torch.no_grad():
            entropy = -(logprob.exp() * logprob).sum(-1)
        logprob = logprob.gather(1, ids[chosen][:, None])[:, 0]
        zeros = logprob.new_zeros(mask.shape)
        return tuple(zeros.masked_scatter(mask, x) for x in (logprob, value, entropy))


def our_iteration(shape, rows, dtype, two_networks=False):
    policy = Llama(shape, seed=0)
    actor = (
        TwoNetworks(policy, Llama(shape, seed=3))
        if two_networks
        else ActorCritic(policy)
    )
    reference, judge = Llama(shape, seed=1), reward.RewardModel(Llama(shape, seed=2))
    settings, vocabulary = replace(PPO, dtype=dtype), Vocabulary(rows)
    optimizer = optimizer_of(actor, settings)
    asked = [
        Prompt(str(i), "fact", "train", (("user", str(i)),)) for i in range(PROMPTS)
    ]

    def score(_, answers):
        given = reward.score(judge, rows, [[a] for a in answers], dtype=dtype)
        return [value for (value,) in given]

    def iteration():
        known = experience(actor, reference, score, vocabulary, asked, settings, 0)
        update(actor, optimizer, known, settings, seed=0)

    return iteration


def their_iteration(shape, rows, folder):
    pad = shape.vocab_size  # no piece of the model: it is never sampled
    common = {
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn_hidden,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_seq_len,
        "attn_implementation": "sdpa",
        "num_labels": 1,
        "pad_token_id": None,
        "eos_token_id": None,
    }
    critic, judge = (
        LlamaForSequenceClassification(LlamaConfig(**common)) for _ in "ab"
    )
    words = {f"t{i}": i for i in range(pad + 1)}
    tokenizer = PreTrainedTokenizerFast(  # asked for its pad and EOS only
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="t0")),
        pad_token=f"t{pad}",
        eos_token=f"t{pad}",
        padding_side="left",
    )
    data = Dataset.from_dict({"input_ids": rows})
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=folder,
            total_episodes=PROMPTS,
            per_device_train_batch_size=PROMPTS,
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=EPOCHS,
            response_length=NEW,
            temperature=1.0,
            kl_coef=PPO.beta,
            cliprange=PPO.clip,
            cliprange_value=PPO.clip,
            vf_coef=PPO.value_coef,
            gamma=PPO.gamma,
            lam=PPO.lam,
            learning_rate=PPO.optim.lr,
            lr_scheduler_type="constant",
            max_grad_norm=PPO.optim.grad_clip,
            num_sample_generations=0,
            # Plain float32 on the CPU: TRL's defaults are made for a GPU.
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            # Nothing but training.
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        processing_class=tokenizer,
        model=peers.transformers_llama(shape),
        ref_model=peers.transformers_llama(shape),
        reward_model=judge,
        value_model=critic,
        train_dataset=data,
        eval_dataset=data,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.accelerator.print = lambda *words: None
    return trainer.train


def main() -> int:
    args = peers.arguments(__doc__, rounds=10)
    warnings.simplefilter("ignore", FutureWarning)
    fast = str(pick_dtype("auto")).removeprefix("torch.")
    rows = []
    for name in args.shapes:
        shape = peers.SHAPES[name]
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(
            3, shape.vocab_size, (PROMPTS, LENGTH), generator=generator
        ).tolist()
        ours = {
            f"a head on the policy, {fast}": our_iteration(shape, prompts, fast),
            "a head on the policy, float32": our_iteration(shape, prompts, "float32"),
            f"two networks, {fast}": our_iteration(shape, prompts, fast, True),
        }
        with tempfile.TemporaryDirectory() as folder:
            theirs = their_iteration(shape, prompts, folder)
            seconds = peers.alternate({"peer": theirs, **ours}, args.rounds)
        peer = seconds.pop("peer")
        for form, times in seconds.items():
            bar = BAR if form == f"a head on the policy, {fast}" else None
            rows.append(peers.Row(f"{name}: {form}", times, peer, bar))
    print(f"{PROMPTS} prompts of {LENGTH} + {NEW} tokens, {EPOCHS} epochs")
    return peers.report(rows)


if __name__ == "__main__":
    sys.exit(main())
