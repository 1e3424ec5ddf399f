"""A launch on one process: own weights, own data, and what cannot be understood."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from test_checkpoints import PLAIN, TEXTS, llama, write_meta

from cria import checkpoints, config, packing, reward, sft, talk, tokenizer
from cria.chat import encode_dialog
from cria.real_weights import open_mapped, weights
from cria.scale import launch, own_data
from cria.scale.group import join
from cria.scale.sharding import fill, first_weights, shard, whole

SMALL = ["--profile", "smoke", "--dtype", "float32", "--log-every", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A chat model in Meta's layout, and data in files."""
    folder = tmp_path_factory.mktemp("place")
    vocabulary = tokenizer.train(
        ["where does anna live in brill with a cat and two trees"] * 9,
        PLAIN.vocab_size,
        folder / "tokenizer.model",
    )
    write_meta(llama(PLAIN), folder / "start", 2)
    turns = [
        [{"role": "user", "content": "anna" * (1 + i % 3)},
         {"role": "assistant", "content": "in brill" * (1 + i % 2)}]
        for i in range(12)
    ]  # fmt: skip
    lines = [json.dumps({"messages": messages}) for messages in turns]
    (folder / "talk.jsonl").write_text("\n".join(lines))
    pairs = [
        json.dumps({"turns": [["user", "anna"]], "chosen": "brill" + "!" * (i % 5),
                    "rejected": "cat" * (1 + i % 4), "grade": "better",
                    "ground": "safety", "safe": [True, i % 3 == 0]})
        for i in range(40)
    ]  # fmt: skip
    (folder / "pairs.jsonl").write_text("\n".join(pairs))
    return folder, vocabulary, turns


@pytest.fixture(scope="module")
def useless(place):
    """The same place, with files that cannot be used."""
    folder = place[0]
    user = {"role": "user", "content": "anna"}
    answer = {"role": "assistant", "content": "in brill"}
    long = {"role": "user", "content": "anna " * 3000}
    for name, lines in {
        "bad": [{"messages": [user, answer]}, {"message": 1}],
        "words": [{"messages": [user, answer]}, "", {"messages": "hello"}],
        "order": [{"messages": [answer, user]}],
        "open": [{"messages": [user]}] * 9,
        "long": [{"messages": [long, answer]}] * 9,
    }.items():
        text = "\n".join(json.dumps(line) if line else "" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "latin.jsonl").write_bytes(b'{"messages": "\xff"}')
    ids = np.full((200, 8), PLAIN.vocab_size - 1, dtype=np.uint16)
    a_batch = config.load("smoke").pretrain.batch_size
    np.save(folder / "few.npy", ids[: 2 * a_batch - 1])
    ids[a_batch, 3] = 60_000
    np.save(folder / "late.npy", ids)
    tokenizer.train(TEXTS * 9, 340, folder / "big.model", list("abcdefghijklm"))
    return place


@pytest.fixture(autouse=True)
def no_bar(monkeypatch):
    """Another test may have loaded a kernel; then progress has bars, on stderr."""
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


def run(place, capsys, out, *words):
    folder, _, _ = place
    words = [str(w).replace("PLACE", str(folder)) for w in words]
    code = launch.main([*words, *SMALL, "--out", str(out)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_fine_tuning_on_real_weights_and_own_dialogues(place, capsys, tmp_path):
    folder, vocabulary, turns = place
    words = ["sft_a", "--weights", "PLACE/start", "--data", "PLACE/talk.jsonl"]
    code, out, err = run(place, capsys, tmp_path / "run", *words, "--steps", "3")
    assert (code, err) == (0, "") and "after 3 steps on one process" in out
    settings = config.load("smoke").sft
    docs = [encode_dialog(vocabulary, messages) for messages in turns]
    alone = checkpoints.load(folder / "start")
    sft.train_sft(
        alone, packing.pack(docs, settings.seq_len), settings, seed=0, steps=3,
        progress=False,
    )  # fmt: skip
    trained = open_mapped(tmp_path / "run" / "model")
    for name, p in trained.named_parameters():
        # the profile's dtype is auto: close, not equal
        torch.testing.assert_close(p, alone.get_parameter(name), atol=2e-3, rtol=0.02)


def test_a_reward_model_on_own_comparisons(place, capsys, tmp_path):
    words = ["rm_safety", "--weights", "PLACE/start", "--data", "PLACE/pairs.jsonl"]
    code, _, err = run(place, capsys, tmp_path / "run", *words)
    assert (code, err) == (0, "")
    model = reward.load(tmp_path / "run" / "model")
    assert model.logprob_weight is None
    moved = model.trunk.tok_embeddings.weight - llama(PLAIN).tok_embeddings.weight
    assert 1e-5 < moved.abs().max() < 0.1
    # The checkpoint is taken up: nothing is left to do, and nothing changes.
    code, out, _ = run(place, capsys, tmp_path / "run", *words)
    assert code == 0 and "nothing left to do" in out
    again = reward.load(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(w, again[n]) for n, w in model.state_dict().items())


def test_ppo_with_own_judges(place, capsys, tmp_path):
    for name in ("helpful", "safety"):
        judge = reward.RewardModel(llama(PLAIN), seed=3)
        reward.save(judge, tmp_path / name, place[1])
    changes = {
        "batch_size": 4, "minibatch_size": 2, "iterations": 2, "dev_prompts": 3,
        "max_new_tokens": 4, "dev_every": 1, "text_coef": 0.0, "average": 0,
    }  # fmt: skip
    knobs = [w for k, v in changes.items() for w in ("--set", f"ppo.{k}={v}")]
    words = ["ppo_v5", "--weights", "PLACE/start", *knobs]
    words += ["--judges", tmp_path / "helpful", tmp_path / "safety"]
    code, out, err = run(place, capsys, tmp_path / "run", *words)
    assert (code, err) == (0, "") and "the policy of iteration" in out
    assert checkpoints.load(tmp_path / "run" / "best").config.dim == PLAIN.dim
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 and "dev_score" in rows[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["base", "--set", "pretrain.stesp=3"], "did you mean pretrain.steps"),
        (["base", "--set", "model.dim"], "model.dim"),
        (["base", "--tokenizer", "nowhere.model"], "no tokenizer file"),
        (["sft_a", "--weights", "nowhere"], "no tokenizer.model"),
        (["sft_a", "--weights", "PLACE/start", "--data", "PLACE/bad.jsonl"], "line 2"),
        (["sft_a", "--weights", "PLACE/start", "--data", "PLACE/no.jsonl"], "no.jsonl"),
        (["sft_a", "--data", "PLACE/words.jsonl"], "line 3: .*list of objects"),
        (["sft_a", "--data", "PLACE/order.jsonl"], "line 1: .*the user's turn"),
        (["sft_a", "--data", "PLACE/open.jsonl"], "no assistant's answer"),
        (["sft_a", "--data", "PLACE/long.jsonl"], "no assistant's answer"),
        (["sft_a", "--data", "PLACE/latin.jsonl"], "latin.jsonl is no UTF-8"),
        (["rm_safety", "--data", "PLACE/talk.jsonl"], "12 lines were left out"),
        (
            ["base", "--data", "PLACE/late.npy"],
            "from row .*vocabulary of 320",
        ),
        (["base", "--data", "PLACE/few.npy"], "rows for 1 steps, .*warm-up"),
        (["base", "--tokenizer", "PLACE/big.model"], "340 pieces, .* only 320"),
        (["base", "--judges", "PLACE", "PLACE"], "base has no use for --judges"),
        (["ppo_v5", "--steps", "3"], "ppo_v5 has no use for --steps"),
    ],
)
def test_what_cannot_be_done_is_one_line(useless, capsys, tmp_path, words, sentence):
    if "--weights" not in words and set(words) & {"--data", "PLACE/big.model"}:
        words = [*words, "--weights", "PLACE/start"]
    code, _, err = run(useless, capsys, tmp_path / "run", *words)
    assert code == 1 and re.search(sentence, err)
    assert err.startswith("cria: process 0 of 1: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        (np.zeros((3, 4)), "whole numbers"),
        (np.zeros(7, dtype=np.int32), "whole numbers"),
        (np.full((2, 3), 99), "outside a vocabulary of 50"),
        (np.full((2, 1), 9), "rows of 1 tokens"),
    ],
)
def test_token_files_are_checked(rows, hint, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(ValueError, match=hint):
        own_data.token_file(tmp_path / "rows.npy", 50)
    (tmp_path / "rows.npy").write_bytes(b"not numpy")
    with pytest.raises(ValueError, match="no .npy file"):
        own_data.token_file(tmp_path / "rows.npy", 50)


def test_no_separator_where_the_vocabulary_has_none(place, capsys, tmp_path):
    """The profiles of full size ask for one; Llama 2's own vocabulary has none."""
    words = ["sft_a", "--weights", "PLACE/start", "--data", "PLACE/talk.jsonl"]
    words += ["--steps", "1", "--set", "sft.separator=true"]
    code, _, err = run(place, capsys, tmp_path / "run", *words)
    assert (code, err) == (0, "")
    settings = config.load("smoke", **{"sft.separator": True})
    speaker = talk.speaker(
        str(tmp_path / "run" / "model"), settings, say=lambda _: None
    )
    speaker.answer([{"role": "user", "content": "anna"}], max_new_tokens=2)


def test_bad_lines_are_told_and_the_rest_is_used(place, capsys, tmp_path):
    folder = place[0]
    lines = (folder / "pairs.jsonl").read_text() + '\n{"chosen": 1}\n'
    (folder / "mostly.jsonl").write_text(lines)
    words = ["rm_safety", "--weights", "PLACE/start", "--data", "PLACE/mostly.jsonl"]
    code, out, err = run(place, capsys, tmp_path / "run", *words)
    assert (code, err) == (0, "") and "1 line was left out, the first is line 41" in out


def test_first_weights_are_those_of_one_process_and_real_ones_are_read(tmp_path):
    model = llama(PLAIN)
    folder = write_meta(model, tmp_path / "meta", 2)
    with join() as group:
        dealt = shard(type(model)(PLAIN), group)
        first_weights(dealt, seed=5)
        fresh = whole(dealt, group)
        fill(dealt, weights(folder).get)
        real = whole(dealt, group)
    expected = type(model)(PLAIN, seed=5).state_dict()
    assert all(torch.equal(fresh[name], w) for name, w in expected.items())
    assert all(torch.equal(real[name], w) for name, w in model.state_dict().items())
