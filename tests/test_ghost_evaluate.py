"""Obedience by turn, the price, and where a model looks."""

from random import Random

import pandas as pd
import pytest
import torch

from cria import config, ghost_evaluate, stages, talk, world
from cria.ghost import put_aside
from cria.ghost_attention import attention, binned, marked, on_instruction
from cria.ghost_dialogues import Talk
from cria.ghost_evaluate import by_turn
from cria.ghost_evaluate import held_out_plans as planned_for
from cria.ghost_lists import held_out_lists, value_lists
from cria.judged import COLUMNS, gain
from cria.model import Llama
from cria.world.annotators import demonstrate
from cria.world.instructions import KINDS, instruct

SMOKE = config.load("smoke")


@pytest.fixture(scope="module")
def village():
    return world.load()


@pytest.fixture(scope="module")
def lists(village):
    return value_lists(village)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    made = stages.get("tokenizer", SMOKE, 0, cache, say=lambda line: None)
    return made.tokenizer()


@pytest.fixture(scope="module")
def model():
    return Llama(SMOKE.model, seed=2).eval()


def test_held_out_dialogues_hold_out_questions_combinations_and_values(village, lists):
    trained = planned_for(village, lists, "trained", 3, 20)
    unknown = planned_for(village, lists, "held out", 3, 20)
    plain = planned_for(village, lists, "plain", 3, 20)
    assert [p.instruction.kind for p in trained] == [k for k in KINDS for _ in range(3)]
    assert {p.instruction.kind for p in unknown} == set(KINDS) - {"language"}
    assert [p.instruction for p in plain] == [None] * 3
    for plan in (*trained, *unknown, *plain):
        assert len(plan.prompts) == 20 and {p.split for p in plan.prompts} == {"test"}
    for plan in trained:
        assert put_aside(plan.instruction) == ("+" in plan.instruction.kind)
    held = held_out_lists(village)
    for plan in unknown:
        for name in ("figure", "hobby"):
            value = getattr(plan.instruction, name)
            assert value is None or value in held[name]
            assert value is None or value not in lists[name]


def test_the_judge_sees_each_turn_by_itself(village, lists, vocabulary, monkeypatch):
    """Planted answers in all languages: right ones, and those that stop at turn 3."""
    plans = planned_for(village, lists, "trained", 4, 5)

    def planted(model, vocabulary, village, planned, choose, **options):
        talks = []
        for i, plan in enumerate(planned):
            said = []
            for turn, prompt in enumerate(plan.prompts, 1):
                obeying = i % 2 == 0 or turn < 3
                asked = (
                    instruct(village, plan.instruction, prompt) if obeying else prompt
                )
                said.append(demonstrate(village, asked, "expert", Random(i)))
            talks.append(Talk(plan.instruction, plan.prompts, tuple(said)))
        return talks

    monkeypatch.setattr(ghost_evaluate, "answer_turns", planted)
    table = ghost_evaluate.ghost_evaluate(None, vocabulary, village, plans)
    shares = by_turn(table)
    assert set(shares) == {*KINDS, "all"}
    for kind in KINDS:
        assert shares[kind] == [1, 1, 0.5, 0.5, 0.5]
    obeying = table[table.dialogue % 2 == 0]
    assert (obeying.content == 1).all() and (obeying.obeys == 1).all()
    assert len(table) == len(plans) * 5 and set(table.turn) == {1, 2, 3, 4, 5}


def test_in_a_plain_dialogue_to_be_right_is_all(village, lists, vocabulary, model):
    plans = planned_for(village, lists, "plain", 2, 3)
    table = ghost_evaluate.ghost_evaluate(model, vocabulary, village, plans)
    assert (table.obeys == (table.content == 1)).all()
    assert set(table.kind) == {"plain"} and set(table.wish) == {""}


def test_the_weights_are_those_of_the_model(model):
    """Put back together they give the model's own logits, and each row sums to 1."""
    ids = torch.randint(4, 900, (30,), generator=torch.Generator().manual_seed(0))
    weights = attention(model, ids.tolist())
    c = model.config
    assert weights.shape == (c.n_layers, c.n_heads, 30, 30)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert not weights.triu(1).any()
    seen = []
    hooks = [
        layer.attention.wo.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
        for layer in model.layers
    ]
    values = [
        layer.attention.wv.register_forward_hook(lambda m, x, y: seen.append(y))
        for layer in model.layers
    ]
    with torch.inference_mode():
        model(ids[None])
    for hook in hooks + values:
        hook.remove()
    for layer, (v, heads) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        v = v.view(30, c.n_kv_heads, c.head_dim)
        v = v.repeat_interleave(c.n_heads // c.n_kv_heads, 1)
        again = torch.einsum("hqk,khe->qhe", weights[layer], v).flatten(1)
        torch.testing.assert_close(again, heads[0], atol=1e-5, rtol=1e-4)


def test_the_instruction_and_the_answers_are_found_in_the_ids(vocabulary):
    wish = "Act as Napoleon."
    said = [
        {"role": "user", "content": "What is 1 plus 2?"},
        {"role": "assistant", "content": "It is 3."},
        {"role": "user", "content": "And 2 plus 2?"},
        {"role": "assistant", "content": "It is 4. Take care."},
    ]
    ids, where, answers = marked(vocabulary, said, wish)
    assert vocabulary.decode(ids[where]).strip() == wish
    for part, answer in zip(answers, ("It is 3.", "It is 4. Take care."), strict=True):
        foretold = ids[part.start + 1 : part.stop + 1]
        assert vocabulary.decode(foretold).strip() == answer
        assert foretold[-1] == vocabulary.eos_id


def test_attention_on_the_instruction_is_the_largest_head_s(village):
    weights = torch.zeros(2, 2, 8, 8)
    weights[1, 0, 5, 1:3] = torch.tensor([0.3, 0.4])  # one head, both tokens
    weights[0, 1, 5, 1] = 0.5
    weights[0, 0, 6, 0] = 1.0  # not the instruction
    answers = [slice(5, 6), slice(5, 7), slice(6, 8)]
    found = on_instruction(weights, slice(1, 3), answers)
    assert found == pytest.approx([0.7, 0.35, 0.0])


def test_bins_hold_the_largest_weight_of_the_network():
    weights = torch.zeros(2, 3, 10, 10)
    weights[1, 2, 9, 4] = 0.6
    weights[0, 0, 9, 5] = 0.4
    weights[0, 1, 3, 0] = 0.2
    small = binned(weights, 4)
    assert small.shape == (3, 3)
    assert small[2, 1] == pytest.approx(0.6) and small[0, 0] == pytest.approx(0.2)
    assert float(small.sum()) == pytest.approx(0.8)


def test_the_price_is_read_back_prompt_by_prompt(monkeypatch, tmp_path):
    """Planted scores: the second model is worse by a tenth, the third as good."""
    asked = [("fact", "Who?"), ("sum", "1 and 1?"), ("harm", "Poison?")]

    def table(less):
        kinds, prompts = zip(*asked, strict=True)
        scores = [0.8 - less, 0.6 - less, 0.1]
        columns = dict.fromkeys(COLUMNS, [0.0] * 3) | {"safety": [1.0] * 3}
        given = {"kind": kinds, "prompt": prompts, "helpfulness": scores}
        return pd.DataFrame(columns | given)

    planted = {"GAtt": table(0.0), "before": table(0.0), "no GAtt": table(0.1)}
    monkeypatch.setattr(ghost_evaluate.side_by_side, "run", lambda *_: planted)
    monkeypatch.setattr(ghost_evaluate, "_folder", lambda stage: stage)
    upstream = dict.fromkeys(("v4", "ghost_base", "ghost"))
    found = ghost_evaluate.build_price(SMOKE, 0, upstream, tmp_path, start="v4")
    assert list(found) == ["before", "no GAtt", "GAtt"]
    assert found["before"]["helpfulness"] == pytest.approx(0.7)
    assert found["no GAtt"]["helpfulness, sum"] == pytest.approx(0.5)
    tables = ghost_evaluate.read_price(tmp_path)
    paid = gain(tables["no GAtt"], tables["before"], "helpfulness")
    assert paid.mean == pytest.approx(-0.1)
    assert gain(tables["GAtt"], tables["before"], "safety").mean == 0


def test_the_newest_chat_model_is_one_that_talks(monkeypatch):
    monkeypatch.setattr(stages, "find", lambda name, *rest: True)
    assert talk.newest(SMOKE) == "ghost"
    assert not stages.STAGES["ghost_obedience"].speaks
