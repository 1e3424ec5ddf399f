"""Training a reward model: ours against TRL's RewardTrainer on the same pairs.

Both: pairs of the tiny world, each once a round, 16 a batch, margins of the paper,
clipping at 1.0, AdamW. Ours is `train_reward_model` as the stages call it: batches of
like length, the prompt of a pair read once, bfloat16 products where the CPU has them.
Theirs is `LlamaForSequenceClassification` in float32 with fused attention (SDPA) and
TRL's own collator: both dialogues of a pair whole, padded on the right. What its
`train()` does before the first step is not counted.
"""

import os
import sys
import tempfile
import time
from dataclasses import replace
from random import Random

# Read when huggingface_hub is first imported: no look-up, and no ping from TRL.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import peers
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import RewardConfig, RewardTrainer

from cria import config, stages, world
from cria.config import GRADES, OptimConfig
from cria.model import Llama
from cria.preferences import Comparison
from cria.reward_data import encode
from cria.reward_training import train_reward_model
from cria.training import pick_dtype
from cria.world.annotators import demonstrate
from cria.world.prompts import mixture

BATCH, STEPS = 16, 20  # a round
BAR = 1.3
COURSE = config.load("course")
OPTIM = OptimConfig(lr=3e-4, schedule="constant", warmup_steps=0)


def tiny_world_pairs(vocabulary):
    """Experts against sloppy annotators: no trained model is needed."""
    village, rng, found = world.load(), Random(0), []
    kinds = dict(COURSE.preferences.kinds["helpfulness"])
    for prompt in mixture(village, "train", 2 * BATCH * STEPS, kinds, seed=0):
        chosen, rejected = (
            demonstrate(village, prompt, style, rng) for style in ("expert", "sloppy")
        )
        if chosen != rejected and len(found) < BATCH * STEPS:
            grade = rng.choice(GRADES)
            found.append(Comparison(prompt.turns, chosen, rejected, grade=grade))
    return encode(vocabulary, found, COURSE.reward.margins["small"])


class FirstStep(TrainerCallback):
    """How long it took from the start of a round to its first step."""

    def __init__(self):
        self.waited = []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.waited.append(time.perf_counter() - self.start)


def our_round(shape, pairs, own_logprob, dtype):
    trunk = Llama(shape, seed=0)
    settings = replace(
        COURSE.reward, batch_size=BATCH, epochs=1, optim=OPTIM, dtype=dtype
    )
    return lambda: train_reward_model(
        trunk, pairs, settings, seed=0, own_logprob=own_logprob, progress=False
    )


def their_round(shape, pairs, vocabulary, folder, first_step):
    special = {
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
        "pad_token_id": vocabulary.pad_id,
    }
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            hidden_size=shape.dim,
            intermediate_size=shape.ffn_hidden,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            num_key_value_heads=shape.n_kv_heads,
            vocab_size=shape.vocab_size,
            max_position_embeddings=shape.max_seq_len,
            attn_implementation="sdpa",
            num_labels=1,
            **special,
        )
    )
    words = {f"t{i}": i for i in range(shape.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(  # asked for its pad and EOS only
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="t0")),
        **{name.removesuffix("_id"): f"t{i}" for name, i in special.items()},
    )
    data = {
        "chosen_ids": [prompt + chosen for prompt, (chosen, _) in pairs.rows],
        "rejected_ids": [prompt + rejected for prompt, (_, rejected) in pairs.rows],
        "margin": pairs.margin.tolist(),
    }
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=OPTIM.lr,
            lr_scheduler_type="constant",
            adam_beta1=OPTIM.betas[0],
            adam_beta2=OPTIM.betas[1],
            adam_epsilon=OPTIM.eps,
            weight_decay=OPTIM.weight_decay,
            max_grad_norm=OPTIM.grad_clip,
            max_length=None,  # else it looks for pairs that are too long
            # Plain float32 on the CPU: TRL's defaults are made for a GPU.
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            # Nothing but training.
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            disable_tqdm=True,
            logging_nan_inf_filter=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(first_step)

    def train():
        first_step.start = time.perf_counter()
        trainer.train()

    return train


def main() -> int:
    args = peers.arguments(__doc__, rounds=15)
    disable_progress_bar()
    vocabulary = stages.get("tokenizer", COURSE).tokenizer()
    pairs = tiny_world_pairs(vocabulary)
    fast = str(pick_dtype("auto")).removeprefix("torch.")
    rows = []
    for name in args.shapes:
        # The tokenizer has a few more pieces than shape A.
        size = max(peers.SHAPES[name].vocab_size, vocabulary.vocab_size)
        shape = replace(peers.SHAPES[name], vocab_size=size)
        first_step = FirstStep()
        ours = {
            f"plain form, {fast}": our_round(shape, pairs, False, fast),
            "plain form, float32": our_round(shape, pairs, False, "float32"),
            f"own-logprob form, {fast}": our_round(shape, pairs, True, fast),
        }
        with tempfile.TemporaryDirectory() as folder:
            theirs = their_round(shape, pairs, vocabulary, folder, first_step)
            seconds = peers.alternate({"peer": theirs, **ours}, args.rounds)
        waited = first_step.waited[1:]  # the first round is not counted
        peer = [s - w for s, w in zip(seconds.pop("peer"), waited, strict=True)]
        for form, times in seconds.items():
            bar = BAR if form == f"plain form, {fast}" else None  # as the stages do
            rows.append(peers.Row(f"{name}: {form}", times, peer, bar))
    print(f"{len(pairs)} pairs a round, {STEPS} steps of {BATCH}")
    return peers.report(rows)


if __name__ == "__main__":
    sys.exit(main())
