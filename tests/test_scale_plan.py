"""A plan: the paper's sizes come out near the paper's numbers, and limits are said."""

import json
import re

import pytest

from cria import scale
from cria.config import load, presets
from cria.scale import (
    GPUS,
    PlanError,
    machines,
    paper,
    placing,
    report,
    table,
    workload,
)

FULL = ["llama2-7b", "llama2-13b", "llama2-34b", "llama2-70b"]
STAGES = ["pre-training", "SFT", "helpfulness RM", "safety RM", "rejection", "PPO"]


@pytest.fixture(scope="module")
def plans():
    return {name: scale.plan(load(name)) for name in presets()}


def stage(config, name):
    return next(s for s in workload.stages(config) if s.name == name)


# ---- what the stages do ------------------------------------------------------


def test_every_stage_is_planned_for_every_profile(plans):
    for name, plan in plans.items():
        assert [s.stage.name for s in plan.stages] == STAGES
        assert all(s.stage.steps > 0 and s.work.flops > 0 for s in plan.stages)
        assert plan.parameters == plan.config.model.n_params, name


@pytest.mark.parametrize("name", FULL)
def test_what_the_paper_prints_of_the_stages(name):
    c = load(name)
    base = stage(c, "pre-training")
    assert base.trained.tokens == pytest.approx(2.0e12, rel=1e-5)
    assert base.rows * base.row_tokens == pytest.approx(4e6, rel=0.05)
    assert stage(c, "SFT").rows == 64 and stage(c, "helpfulness RM").rows == 512
    # Half of the comparisons are on helpfulness, and as many are drawn from the rest.
    assert stage(c, "helpfulness RM").trained.n == 1_418_091
    # The other half is nine tenths of the safety RM's data.
    assert stage(c, "safety RM").trained.n == round(1_418_091 / 2 / 0.9)
    ppo = stage(c, "PPO")
    assert (ppo.steps, ppo.rows) == (400 * 512 // 64, 64)


def test_helpfulness_pairs_stop_at_what_there_is():
    few = {"preferences.pairs": 1000, "preferences.safety_share": 0.2}
    for open_pairs, n in ((100, 1100), (10_000, 1600)):  # 800 helpful ones, doubled
        c = load("course", **few, **{"preferences.open_pairs": open_pairs})
        assert stage(c, "helpfulness RM").trained.n == n * c.reward.epochs


def test_packed_rows_are_those_of_the_recorded_course():
    """The course's own run packed 6000 demonstrations into 608 rows of 256."""
    sft = stage(load("course"), "SFT")
    assert sft.trained.n / 2 == pytest.approx(608, rel=0.03)  # seen twice
    loose = stage(load("course", **{"sft.packing": False}), "SFT")
    assert loose.trained.n == 2 * 6000


def test_the_pool_of_all_rounds_is_the_longer_one():
    pool, last = (
        stage(load("llama2-7b", **{"rejection.pool": p}), "rejection")
        for p in ("all", "previous")
    )
    # Rounds of 1, 2, 3, 4 parts against four rounds of one.
    assert pool.trained.n / last.trained.n == pytest.approx(10 / 4, rel=0.01)
    assert pool.writing == last.writing  # as many are sampled


def test_more_samples_cost_sampling_and_scoring_but_no_training():
    few, many = (
        stage(load("llama2-7b", **{"rejection.samples": k}), "rejection")
        for k in (5, 20)
    )
    assert many.trained == few.trained
    assert many.writing.answers == 4 * few.writing.answers
    for each in (few, many):  # both reward models read every answer
        assert each.read_by_judges.n == each.writing.answers and len(each.judges) == 2


def test_ppo_keeps_four_models_and_every_answer_is_read_by_four():
    c = load("llama2-7b")
    n, head = c.model.n_params, c.model.dim + 1
    # 16 bytes to train the policy; first policy and two reward models in bfloat16.
    by_hand = 16 * n + 2 * n + 2 * 2 * (n + head)
    assert placing.lasting_bytes(c, stage(c, "PPO")) == by_hand
    assert placing.lasting_bytes(c, stage(c, "safety RM")) == 16 * (n + head)
    # In rejection sampling the judges are gone when training begins.
    assert placing.lasting_bytes(c, stage(c, "rejection")) == 16 * n
    ppo = stage(c, "PPO")
    assert ppo.writing.answers == ppo.trained.n == 400 * 512
    # Log-probabilities and values, the first policy's, and two scores.
    assert ppo.read_by_policy.n == 2 * ppo.writing.answers
    assert ppo.read_by_judges.n == ppo.writing.answers
    read = scale.to_dict(scale.plan(c))["stages"][-1]["read_tokens"]
    assert read == pytest.approx(4 * ppo.trained.tokens, rel=1e-6)


def test_a_reward_model_that_weighs_its_own_words_needs_the_output_matrix():
    c = load("llama2-7b", **{"reward.own_logprob": ["helpfulness"]})
    plan, plain = scale.plan(c), scale.plan(load("llama2-7b"))
    kept = [p["helpfulness RM"].memory.activations for p in (plan, plain)]
    logits = 4096 * (4 * 32000 + 8)  # log-probabilities in float32, and the targets
    assert kept[0] - kept[1] == logits
    assert plan["safety RM"].memory == plain["safety RM"].memory
    assert plan["helpfulness RM"].work.flops > plain["helpfulness RM"].work.flops
    assert plan["safety RM"].work.flops == plain["safety RM"].work.flops


def test_operations_by_hand():
    """7B: 6.61 billion weights in matrices, 6.48 without the output. Attention at T
    tokens is like so many more weights: 32 layers · 4096 · T."""
    c = load("llama2-7b")
    plan, weights, headless = scale.plan(c), 6.607e9, 6.476e9
    rm = plan["safety RM"]
    tokens = rm.stage.trained.tokens
    by_hand = 6 * (headless + 32 * 4096 * 812.6) * tokens
    assert rm.work.flops == pytest.approx(by_hand, rel=0.003)
    ppo, n = plan["PPO"], 400 * 512
    answered = 31.4 + 234.1
    assert ppo.work.trained_flops == pytest.approx(6 * weights * n * answered, rel=0.01)
    reads = 2 * (2 * weights + 2 * headless) * n * answered
    assert ppo.work.read_flops == pytest.approx(reads, rel=0.01)
    writes = 2 * weights * n * answered  # one answer a prompt: nothing is shared
    assert ppo.work.written_flops == pytest.approx(writes, rel=0.01)


def test_few_answers_at_once_wait_for_the_memory():
    """With two answers at once a GPU reads 13.5 GB for every two tokens."""
    c = load("llama2-7b")
    work = {n: scale.plan(c, n)["PPO"].work for n in (4, 256)}
    assert scale.plan(c, 256)["PPO"].sampler.at_once == 2
    n_tokens = 400 * 512 * 234.1
    weights = 2 * c.model.n_params * n_tokens / 2  # bytes
    cache = 2 * 32 * 32 * 128 * 2 * (31.4 + 234.1 / 2) * n_tokens
    reading = (weights + cache) / (2.039e12 * 0.6) / 3600
    computing = (work[256].trained_flops + work[256].read_flops) / (312e12 * 0.4) / 3600
    assert work[256].gpu_hours == pytest.approx(reading + computing, rel=0.001)
    assert work[4].gpu_hours < work[256].gpu_hours


def test_answers_end_where_they_are_cut():
    short = {"rejection.max_new_tokens": 100}
    written = stage(load("llama2-7b", **short), "rejection").writing
    assert (written.answer, written.longest) == (100, 132)  # 31.4 of the prompt
    written = stage(load("llama2-7b"), "rejection").writing
    assert (written.answer, written.longest) == (234.1, 32 + 1024)


# ---- beside the paper --------------------------------------------------------


@pytest.mark.parametrize("name", FULL)
def test_gpu_hours_of_pre_training_come_near_the_paper_s(plans, name):
    lines = {line["what"]: line for line in report.comparison(plans[name])}
    hours = lines["GPU time"]
    assert abs(hours["off"]) < 0.12
    # Ours at 40 % and theirs at the implied share are the same operations.
    implied = report.implied_mfu(plans[name])
    assert hours["here"] * 0.4 == pytest.approx(hours["paper"] * implied)
    assert 0.35 < implied < 0.45
    own = lines["carbon of the paper's own energy"]
    assert own["here"] == pytest.approx(own["paper"], abs=0.01)
    assert ("a PPO iteration" in lines) == (name == "llama2-70b")


def test_nothing_is_compared_that_is_not_the_paper_s(plans):
    assert report.comparison(plans["course"]) == []
    assert report.implied_mfu(plans["course"]) is None
    shorter = scale.plan(load("llama2-7b", **{"pretrain.steps": 100_000}))
    assert report.comparison(shorter) == [] and "Beside" not in str(shorter)


def test_the_table_of_the_paper_holds_our_presets():
    assert [load(name).model.n_params for name in FULL] == list(paper.TABLE_2)


# ---- what fits ---------------------------------------------------------------


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("gpu", ["a100-40gb", "h200-141gb"])
def test_the_fewest_gpus_fit_and_one_fewer_does_not(name, gpu):
    config = load(name)
    plan = scale.plan(config, gpu=gpu)
    usable = GPUS[gpu].usable_bytes
    assert all(s.memory.total_checkpointed <= usable for s in plan.stages)
    assert plan.gpus == max(s.fewest_gpus for s in plan.stages)
    with pytest.raises(PlanError, match=f"at least {plan.gpus}"):
        scale.plan(config, plan.gpus - 1, gpu)
    same = scale.plan(config, plan.gpus, gpu)
    assert same.given and not plan.given and same.stages == plan.stages


def test_state_in_one_sentence_by_hand():
    """70B · 16 bytes = 1104 GB, and 8 GPUs of 80 GB, less a tenth, have 576."""
    with pytest.raises(PlanError) as told:
        scale.plan(load("llama2-70b"), gpus=8)
    said = str(told.value)
    assert "1,104 GB" in said and "576 GB" in said and "8 × a100-80gb" in said
    assert said.count(".") == 1 and said.endswith(".")


LONG = dict.fromkeys(("model.max_seq_len", "pretrain.seq_len", "sft.seq_len"), 16384)


def test_where_no_number_of_gpus_helps_another_gpu_is_named():
    config = load("llama2-70b", **LONG)
    with pytest.raises(PlanError, match=r"however many.*: .*; \d+ × \S+ would do"):
        scale.plan(config, gpu="rtx4090-24gb")
    assert scale.plan(config, gpu="h200-141gb").gpus > 10
    longer = load("llama2-70b", **{key: 2**18 for key in LONG})
    with pytest.raises(PlanError, match="no GPU of our table"):
        scale.plan(longer)


def test_fsdp_shares_what_lasts_and_not_the_rows():
    few, many = (scale.plan(load("llama2-70b"), gpus=n) for n in (32, 64))
    for a, b in zip(few.stages, many.stages, strict=True):
        assert a.memory.lasting == pytest.approx(2 * b.memory.lasting)
        assert a.memory.activations == b.memory.activations
        assert a.memory.gathered == b.memory.gathered
        assert a.memory.activations_checkpointed < a.memory.activations / 10


def test_more_gpus_than_rows_do_not_train_faster():
    config = load("llama2-7b")
    times = [scale.plan(config, n)["SFT"].work.hours for n in (32, 64, 128, 4096)]
    assert times[0] == pytest.approx(2 * times[1])
    assert times[1] == times[2] == times[3]
    said, silent = (" ".join(str(scale.plan(config, n)).split()) for n in (128, 32))
    assert "SFT 64" in said and "SFT 64" not in silent


def test_gqa_makes_room_for_as_many_times_more_answers(plans):
    for name, times in (("llama2-70b", 8), ("llama2-34b", 8), ("llama2-7b", 1)):
        for line in scale.to_dict(plans[name])["stages"][4:]:
            s = line["sampler"]
            without = s["room_for_answers_without_gqa"]
            assert s["room_for_answers"] / without == pytest.approx(times, rel=0.03)


def test_a_sampler_fits_its_gpus():
    config = load("llama2-70b")
    rejection = stage(config, "rejection")
    gpu = machines.GPUS["a100-80gb"]
    group = placing.sampler(config, rejection, gpu, 16, 0.0)
    full = group.weight_bytes + group.room * group.cache_bytes
    assert full <= group.gpus * gpu.usable_bytes < full + group.cache_bytes
    assert group.weight_bytes <= group.gpus * gpu.usable_bytes / 2
    assert placing.sampler(config, rejection, gpu, group.gpus - 1, 0.0) is None


# ---- asked for badly, and shown ----------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gpu": "h100-80g"}, "did you mean h100-80gb"),
        ({"gpus": 0}, "1 or more"),
        ({"mfu": 0.0}, "above 0"),
        ({"mfu": 40.0}, "at most 1"),
    ],
)
def test_a_wrong_question_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        scale.plan(load("llama2-7b"), **options)


def test_an_unknown_stage_gives_the_nearest(plans):
    with pytest.raises(KeyError, match="did you mean rejection"):
        plans["course"]["rejecton"]


def test_the_page_is_narrow_and_holds_what_was_asked(plans):
    for plan in [*plans.values(), scale.plan(load("llama2-70b"), 100_000, "l40s-48gb")]:
        lines = str(plan).splitlines()
        assert max(map(len, lines)) <= 100
        assert f"{plan.parameters:,} parameters" in lines[0]
        for name in STAGES:
            assert sum(line.split("  ")[1:2] == [name] for line in lines) >= 2
        assert all(
            sentence.split(".")[0][:40] in str(plan) for sentence in plan.assumptions
        )


def keys(tree):
    if isinstance(tree, dict):
        return {*tree, *(k for value in tree.values() for k in keys(value))}
    return {k for v in tree for k in keys(v)} if isinstance(tree, list) else set()


def test_json_has_the_documented_keys_and_no_others(plans):
    found = scale.to_dict(plans["llama2-70b"])
    assert json.loads(json.dumps(found)) == found
    described = report.__doc__.split("Keys of", 1)[1]
    assert keys(found) <= set(re.findall(r"\w+", described))
    with_unit = re.findall(r"\w+_(?:bytes|hours|mwh|flops|tokens|w|per_s)\b", described)
    assert set(with_unit) <= keys(found)
    assert keys(scale.to_dict(plans["course"])) <= keys(found)


@pytest.mark.parametrize(
    ("function", "value", "said"),
    [
        (table.short, 1_999_999_336_448, "2.00T"),
        (table.short, 999.6, "1.00k"),
        (table.size, 1.104e12, "1.10 TB"),
        (table.size, 268.3e9, "268 GB"),
        (table.energy, 13.2e-9, "13.2 mWh"),
        (table.clock, 67_000, "7.64 years"),
        (table.clock, 0.5 / 3.6e6, "0.500 ms"),
        (table.gpu_time, 1_906_999.6, "1,907,000 h"),
        (table.gpu_time, 2.5, "2 h 30 min"),
    ],
)
def test_numbers_for_people(function, value, said):
    assert function(value) == said
