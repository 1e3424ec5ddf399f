"""TRL's RewardTrainer as the oracle of our reward model's loss.

TRL runs in a process of its own (this file, started as a script): whether
huggingface_hub may use the network is decided when it is first imported, and here
transformers may have been imported by another test long before.
"""

import os
import subprocess
import sys
import tempfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from cria.branching import branched
from cria.checkpoint_hf import heads_of, hf_name, to_halves
from cria.config import ModelConfig
from cria.model import Llama
from cria.reward import RewardModel
from cria.reward_training import reward_loss

SHAPE = ModelConfig(
    dim=32, n_layers=2, n_heads=8, n_kv_heads=2, vocab_size=60, multiple_of=8
)
BOS, EOS, PAD = 1, 2, 3
N = 12


def pairs():
    """[(prompt, (chosen, rejected))] of unequal lengths, and their margins."""
    generator = torch.Generator().manual_seed(0)

    def words(low, high):
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(4, 60, (length,), generator=generator).tolist()

    rows = [
        ([BOS, *words(1, 9)], ([*words(1, 20), EOS], [*words(1, 20), EOS]))
        for _ in range(N)
    ]
    return rows, torch.tensor([(i % 4) / 3 for i in range(N)])


def our_model():
    """Weights large enough that attention matters and scores differ."""
    model = RewardModel(Llama(SHAPE, seed=0), seed=1)
    with torch.no_grad():
        for p in model.trunk.parameters():
            if p.dim() == 2:
                p.mul_(8)
    return model


def trl_side(path):
    """What TRL makes of the same weights and pairs, as a safetensors file."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # no look-up
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL would send a ping
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForSequenceClassification
    from transformers import PreTrainedTokenizerFast as Fast
    from trl import RewardConfig, RewardTrainer

    ours = our_model()
    theirs = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=SHAPE.vocab_size,
            hidden_size=SHAPE.dim,
            intermediate_size=SHAPE.ffn_hidden,
            num_hidden_layers=SHAPE.n_layers,
            num_attention_heads=SHAPE.n_heads,
            num_key_value_heads=SHAPE.n_kv_heads,
            rms_norm_eps=SHAPE.norm_eps,
            rope_theta=SHAPE.rope_theta,
            max_position_embeddings=SHAPE.max_seq_len,
            num_labels=1,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )
    weights = {"score.weight": ours.head.weight.detach()}
    for name, weight in ours.trunk.state_dict().items():
        if name != "output.weight":  # a scalar head instead
            heads = heads_of(name, SHAPE)
            weights[hf_name(name)] = to_halves(weight, heads) if heads else weight
    theirs.load_state_dict(weights, strict=True)

    rows, margin = pairs()
    pieces = {f"t{i}": i for i in range(SHAPE.vocab_size)}
    tokenizer = Fast(  # asked for its pad and EOS only
        tokenizer_object=Tokenizer(models.WordLevel(pieces, unk_token="t0")),
        bos_token=f"t{BOS}",
        eos_token=f"t{EOS}",
        pad_token=f"t{PAD}",
    )
    data = {
        "chosen_ids": [prompt + chosen for prompt, (chosen, _) in rows],
        "rejected_ids": [prompt + rejected for prompt, (_, rejected) in rows],
        "margin": margin.tolist(),
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model=theirs,
            args=RewardConfig(
                output_dir=folder,
                max_length=None,
                use_cpu=True,
                bf16=False,
                activation_checkpointing=False,
                report_to="none",
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_dict(data),
            processing_class=tokenizer,
        )
        examples = [trainer.train_dataset[i] for i in range(N)]
        batch = trainer.data_collator(examples)
        without = {k: v for k, v in batch.items() if k != "margin"}
        theirs.train()
        loss, out = trainer.compute_loss(theirs, dict(batch), return_outputs=True)
        loss.backward()
        accuracy = trainer._metrics["train"]["accuracy"][-1]
        found = {
            "loss": loss.detach(),
            "without": trainer.compute_loss(theirs, dict(without)).detach(),
            "scores": out.logits.detach().squeeze(-1).view(2, N).T.contiguous(),
            "accuracy": torch.tensor(accuracy),
            "head": theirs.score.weight.grad,
            "embeddings": theirs.model.embed_tokens.weight.grad,
        }
    save_file(found, path)


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


def our_side(margin):
    model, (rows, _) = our_model(), pairs()
    made = branched(rows)
    batch = {"ids": made.ids, "branches": made.branches, "margin": margin}
    loss, metrics = reward_loss()(model, batch)
    loss.backward()
    return model, model(made.ids, made.branches).detach(), loss.detach(), metrics


def test_loss_and_gradient_are_trls(trl):
    """Theirs reads every prompt twice, padded on the right; ours once, in branches."""
    model, scores, loss, metrics = our_side(pairs()[1])
    assert scores.std() > 0.3, "scores this alike would agree by accident"
    torch.testing.assert_close(scores, trl["scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(loss, trl["loss"], atol=1e-5, rtol=0)
    assert metrics["accuracy"] == pytest.approx(trl["accuracy"].item())
    close = {"atol": 1e-5, "rtol": 1e-3}
    torch.testing.assert_close(model.head.weight.grad, trl["head"], **close)
    embeddings = model.trunk.tok_embeddings.weight.grad
    torch.testing.assert_close(embeddings, trl["embeddings"], **close)
    assert model.head.bias.grad.abs() < 1e-6, "no ranking depends on it: TRL has none"


def test_without_a_margin_too(trl):
    loss = our_side(torch.zeros(N))[2]
    torch.testing.assert_close(loss, trl["without"], atol=1e-5, rtol=0)
    assert trl["loss"] > trl["without"] + 0.05, "and a margin makes it larger"


if __name__ == "__main__":
    trl_side(sys.argv[1])
