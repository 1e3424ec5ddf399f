"""Rejection sampling: what a round does, and that a killed one goes on."""

import json
from dataclasses import replace

import pytest
import torch

from cria import chat, config, rejection, rejection_stage, stages, world
from cria.rejection import best_temperature, fine_tune, rescore, rewards, sample
from cria.reward import RewardModel
from cria.sampling import generate
from cria.selection import best, randomly, read_pool
from cria.world.prompts import mixture

SMOKE = config.load("smoke")
GATE = SMOKE.ppo.safety_gate


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def built(cache):
    """The first two rounds, in the smoke profile, from an empty cache."""
    return [stages.get(f"v{i}", SMOKE, 0, cache, say=lambda x: None) for i in (1, 2)]


@pytest.fixture(scope="module")
def sft(cache, built):
    return stages.get("sft_a", SMOKE, 0, cache, say=lambda x: None)


@pytest.fixture
def parts(sft):
    """A model, two untrained reward models, the tokenizer, a few prompts."""
    rms = tuple(RewardModel(sft.model(), seed=i).eval() for i in (1, 2))
    asked = mixture(world.load(), "train", 6, dict(SMOKE.rejection.kinds), 3)
    return sft.model(), rms, sft.tokenizer(), asked


def draw(parts, **changes):
    model, rms, vocabulary, asked = parts
    options = {"round": 1, "temperature": 1.0, "gate": GATE, "seed": 5} | changes
    return sample(model, rms, vocabulary, asked, SMOKE.rejection, **options)


def test_k_answers_a_prompt_with_the_scores_of_the_reward_models(parts):
    _, rms, vocabulary, asked = parts
    found = draw(parts)
    K = SMOKE.rejection.samples
    assert [s.prompt for s in found] == [p for p in asked for _ in range(K)]
    for s in found[::5]:
        (alone,) = rewards(rms, vocabulary, [s.prompt], [[s.ids]], GATE)[0]
        assert alone == pytest.approx(s.score, abs=0.05)  # bfloat16, other neighbours


def test_the_safety_model_decides_on_harmful_prompts(parts):
    _, rms, vocabulary, _ = parts
    for kind, decides in (("harm", 1), ("sum", 0)):
        (prompt,) = mixture(world.load(), "train", 1, {kind: 1.0}, 0)
        ids = [[7, 8, vocabulary.eos_id]]
        never = rewards(rms, vocabulary, [prompt], [ids], 1e-9)[0][0]
        # two copies of the deciding model: the gate has nothing to choose
        alone = rewards((rms[decides],) * 2, vocabulary, [prompt], [ids], 1e-9)[0][0]
        assert never == pytest.approx(alone, abs=1e-6)


def test_a_killed_round_samples_nothing_twice(parts, tmp_path, monkeypatch):
    """Stopped after any chunk, the second call ends with the same samples."""
    monkeypatch.setattr(rejection, "CHUNK", 2)
    whole = draw(parts, out=None)
    for stop in (1, 2):
        out = tmp_path / str(stop)
        out.mkdir()
        calls = []

        def counted(*args, stop=stop, calls=calls, **kwargs):
            if len(calls) == stop:
                raise KeyboardInterrupt
            calls.append(1)
            return generate(*args, **kwargs)

        monkeypatch.setattr(rejection, "generate", counted)
        with pytest.raises(KeyboardInterrupt):
            draw(parts, out=out)
        assert len(list(out.glob("samples-*.json"))) == stop
        monkeypatch.setattr(rejection, "generate", generate)
        kept = {p.name: p.read_bytes() for p in out.glob("samples-*.json")}
        assert draw(parts, out=out) == whole
        assert all((out / name).read_bytes() == kept[name] for name in kept)
        assert not [p for p in out.iterdir() if not p.name.startswith("samples-")]


def test_the_pool_is_scored_anew(parts):
    _, rms, vocabulary, _ = parts
    found = draw(parts)
    stale = [replace(s, score=99.0) for s in found]
    again = rescore(stale, rms, vocabulary, GATE)
    for a, b in zip(again, found, strict=True):
        assert a.score == pytest.approx(b.score, abs=0.05)


def test_the_temperature_is_the_one_whose_best_of_k_scores_highest(parts):
    model, rms, vocabulary, asked = parts
    found, curve = best_temperature(
        model, rms, vocabulary, asked, SMOKE.rejection, gate=GATE, seed=1
    )
    assert set(curve) == set(SMOKE.rejection.temperatures)
    assert curve[found] == max(curve.values())


def test_fine_tuning_makes_the_chosen_answers_likelier_than_the_control(parts):
    """Best and random are the same prompts and steps: only the choice differs."""
    model, _, vocabulary, _ = parts
    found = draw(parts)
    c = replace(SMOKE.rejection, epochs=8)
    one, other = best(found), randomly(found, 1)
    assert [s.prompt for s in one] == [s.prompt for s in other]

    def likely(net):
        total = 0.0
        for s in one:
            prompt = chat.prompt_ids(vocabulary, s.prompt.messages)
            ids = torch.tensor([[*prompt, *s.ids]])
            with torch.inference_mode():
                logp = net(ids)[0].log_softmax(-1)
            total += sum(
                float(logp[len(prompt) + i - 1, t]) for i, t in enumerate(s.ids)
            )
        return total

    before = likely(model)
    fine_tune(model, vocabulary, one, c, seed=0, progress=False)
    assert likely(model) > before


def test_a_round_leaves_a_model_two_reward_models_and_the_pool(built):
    first, second = built
    for made in built:
        for part in ("model", "rm_helpfulness", "rm_safety"):
            assert (made.path / part / "model.safetensors").exists()
        left = {p.name for p in made.path.iterdir()}
        assert not [n for n in left if n.startswith("samples-")]
        assert not list(made.path.rglob("training.safetensors"))
    pools = [read_pool(made.path / "pool.json") for made in built]
    assert {s.round for s in pools[0]} == {1} and {s.round for s in pools[1]} == {1, 2}
    chosen = second.metrics["chosen_by_round"]
    assert sum(chosen) == second.metrics["chosen"] and len(chosen) == 2


def test_every_round_learns_from_different_prompts_once_each(built):
    for made in built:
        pool = read_pool(made.path / "pool.json")
        newest = [s.prompt.id for s in pool if s.round == max(x.round for x in pool)]
        assert len(newest) == len(set(newest)) == SMOKE.rejection.prompts


def test_a_round_learns_from_no_answer_that_was_cut_off(
    cache, built, monkeypatch, tmp_path
):
    """Each prompt has one that ended, and one without an end that is liked better."""
    eos = stages.find("sft_a", SMOKE, 0, cache).tokenizer().eos_id
    learnt = []

    def sampled(*given, **options):
        found = sample(*given, **options)
        cut = [replace(s, ids=(7, 7), score=99.0) for s in best(found)]
        return [*found, *cut, *(replace(s, ids=(7, eos), score=-99.0) for s in cut)]

    class Enough(Exception):
        pass

    def kept(model, vocabulary, lessons, *given, **options):
        learnt.extend(lessons)
        raise Enough

    monkeypatch.setattr(rejection_stage, "sample", sampled)
    monkeypatch.setattr(rejection_stage, "fine_tune", kept)
    needs = stages.STAGES["v1"].needs
    upstream = {name: stages.find(name, SMOKE, 0, cache) for name in needs}
    with pytest.raises(Enough):
        rejection_stage.build(SMOKE, 0, upstream, tmp_path, round=1)
    assert learnt and all(s.ids[-1] == eos for s in learnt)


def test_fresh_comparisons_gather_over_the_rounds(built):
    first, second = (
        [json.loads(x) for x in (m.path / "fresh.jsonl").read_text().splitlines()]
        for m in built
    )
    assert second[: len(first)] == first
    assert len(second) == len(first) + sum(built[1].metrics["fresh"].values())


def test_before_the_first_round_the_reward_models_read_its_new_wordings(built):
    first = built[0]
    rows = (first.path / "fresh.jsonl").read_text().splitlines()
    before = [json.loads(x) for x in rows][: -sum(first.metrics["fresh"].values())]
    assert {x["prompt"]["split"] for x in before} >= {"fresh"}
    assert {x["ground"] for x in before} == {"helpfulness", "safety"}
    for ground in ("helpfulness", "safety"):
        folder = first.path / "before" / f"training_{ground}"
        assert (folder / "metrics.csv").exists()


def test_the_reward_models_of_a_round_are_not_those_of_the_last(built):
    from cria import reward

    for ground in ("helpfulness", "safety"):
        a, b = (reward.load(made.path / f"rm_{ground}").state_dict() for made in built)
        assert any(not torch.equal(a[name], b[name]) for name in a)
