"""The stages of the recipe: which there are, and what each is made from.

`cria.stages` builds and finds them. The order is that of the recipe.
"""

from __future__ import annotations

from cria.stage_kind import Stage
from cria.stage_knobs import (
    DISTILLED,
    GHOST_MEMORY,
    GHOST_SAMPLED,
    GHOST_TAUGHT,
    PRE_PROMPT,
    RS_ASKED,
    RS_LOOK,
    RS_SMALL,
    SAFETY_DATA,
    SAFETY_LOOK,
)

__all__ = ["STAGES", "WORLD"]

WORLD = ("*.csv", "*.yaml")
NEWEST = "v4"  # the chat model that Ghost Attention goes on with …
ITS_RM = "v4"  # … and the round whose reward model it takes

STAGES: dict[str, Stage] = {
    "tokenizer": Stage(
        "cria.pretrain:build_tokenizer",
        sections=("tokenizer",),
        data=WORLD,
    ),
    "base": Stage(
        "cria.pretrain:build",
        needs=("tokenizer",),
        sections=("tokenizer", "model", "pretrain"),
        data=WORLD,
        speaks=True,
    ),
    "pretrain_mixes": Stage(
        "cria.pretrain_comparisons:build_mixes",
        needs=("tokenizer",),
        sections=(
            "model",
            "pretrain",
            "comparisons.mix_steps",
            "comparisons.mix_plain",
        ),
        data=WORLD,
    ),
    "pretrain_sizes": Stage(
        "cria.pretrain_comparisons:build_sizes",
        sections=(
            "scaling",
            "tokenizer.real_documents",
            "tokenizer.real_vocab_size",
        ),
    ),
    "sft_questions": Stage(
        "cria.sft_questions:build",
        needs=("tokenizer", "base"),
        sections=(
            "sft",
            "comparisons.few_demonstrations",
            "comparisons.many_demonstrations",
            "evaluate.prompts",
        ),
        data=WORLD,
    ),
    "sft_a": Stage(
        "cria.sft:build",
        needs=("tokenizer", "base"),
        sections=("model", "sft"),
        data=WORLD,
        options={"variant": "a"},
        speaks=True,
    ),
    "sft_b": Stage(
        "cria.sft:build",
        needs=("tokenizer", "base"),
        sections=("model", "sft"),
        data=WORLD,
        options={"variant": "b"},
        speaks=True,
    ),
    "sft_other": Stage(
        "cria.sft:build",
        needs=("tokenizer", "base"),
        sections=("model", "sft"),
        data=WORLD,
        options={"variant": "other"},
        speaks=True,
    ),
    "preferences": Stage(
        "cria.preferences:build",
        needs=("tokenizer", "sft_a", "sft_b", "sft_other"),
        sections=("preferences",),
        data=WORLD,
    ),
    "rm_helpful": Stage(
        "cria.reward_training:build",
        needs=("sft_a", "preferences"),
        sections=("reward",),
        options={"ground": "helpfulness"},
    ),
    "rm_safety": Stage(
        "cria.reward_training:build",
        needs=("sft_a", "preferences"),
        sections=("reward",),
        options={"ground": "safety"},
    ),
    "rm_plain": Stage(
        "cria.reward_comparisons:build_plain",
        needs=("sft_a", "preferences"),
        sections=("reward",),
    ),
    "rm_control": Stage(
        "cria.reward_comparisons:build",
        needs=("sft_a", "preferences"),
        sections=("reward", "comparisons"),
        options={"question": "control"},
    ),
    "rm_margins": Stage(
        "cria.reward_comparisons:build",
        needs=("sft_a", "preferences", "rm_control"),
        sections=("reward", "comparisons"),
        options={"question": "margins"},
    ),
    "rm_joint": Stage(
        "cria.reward_comparisons:build",
        needs=("sft_a", "preferences"),
        sections=("reward", "comparisons"),
        options={"question": "joint"},
    ),
    "rs_small": Stage(
        "cria.smaller:build",
        needs=("sft_a",),
        sections=("model", "pretrain", "sft", *RS_SMALL),
        data=WORLD,
    ),
    "rm_growth": Stage(
        "cria.reward_comparisons:build",
        needs=("sft_a", "preferences", "rs_small"),
        sections=(
            *("model", "pretrain", "sft", "reward", "comparisons"),
            "rejection_comparisons.small_model",
        ),
        data=WORLD,
        options={"question": "growth"},
    ),
    "rm_starts": Stage(
        "cria.reward_comparisons:build",
        needs=("base", "sft_a", "preferences", "rm_control"),
        sections=("reward", "comparisons"),
        options={"question": "starts"},
    ),
    "rm_epochs": Stage(
        "cria.reward_comparisons:build",
        needs=("sft_a", "preferences"),
        sections=("reward", "comparisons"),
        options={"question": "epochs"},
    ),
    "rm_mixes": Stage(
        "cria.reward_comparisons:build",
        needs=("sft_a", "preferences", "rm_control"),
        sections=("reward", "comparisons"),
        options={"question": "mixes"},
    ),
    "bon_pool": Stage(
        "cria.sample_pool_stage:build",
        needs=("sft_a", "rm_helpful", "rm_safety", "rm_plain"),
        sections=("best_of_n", "ppo.safety_gate"),
        data=WORLD,
        options={"model": "sft_a"},
    ),
    **{
        f"v{round}": Stage(
            "cria.rejection_stage:build",
            needs=(
                "sft_a",
                "preferences",
                *(("rm_helpful", "rm_safety") if round == 1 else (f"v{round - 1}",)),
            ),
            sections=("preferences", "reward", "rejection", "ppo.safety_gate"),
            data=WORLD,
            options={"round": round},
            speaks=True,
        )
        for round in (1, 2, 3, 4)
    },
    "ppo_v5": Stage(
        "cria.ppo_stage:build",
        needs=("v1", "v2", "v3", "v4"),
        sections=("ppo", "rejection.text_mix", "rejection.seq_len"),
        data=WORLD,
        speaks=True,
    ),
    "bon_pool_v4": Stage(
        "cria.sample_pool_stage:build",
        needs=("v4", "rm_helpful", "rm_safety", "rm_plain"),
        sections=("best_of_n", "ppo.safety_gate"),
        data=WORLD,
        options={"model": "v4"},
    ),
    "rs_samples": Stage(
        "cria.rejection_samples:build",
        needs=("sft_a", "rm_helpful", "rm_safety"),
        sections=("rejection", *RS_ASKED),
        data=WORLD,
    ),
    "rs_choice": Stage(
        "cria.rejection_comparisons:build",
        needs=("sft_a", "rs_samples"),
        sections=("rejection", *RS_LOOK),
        data=WORLD,
        options={"question": "choice"},
    ),
    "rs_rrhf": Stage(
        "cria.rejection_comparisons:build",
        needs=("sft_a", "rs_samples"),
        sections=("rejection", *RS_LOOK, "rejection_comparisons.rrhf"),
        data=WORLD,
        options={"question": "rrhf"},
    ),
    "rs_pool": Stage(
        "cria.rejection_comparisons:build",
        needs=("sft_a", "rs_samples", "v1", "v2"),
        sections=(
            "rejection",
            "rejection_comparisons.forgotten",
            *RS_ASKED,
            *RS_LOOK,
        ),
        data=WORLD,
        options={"question": "pool"},
    ),
    "rs_distill": Stage(
        "cria.rejection_comparisons:build",
        needs=("sft_a", "rs_small", "v3", "v4"),
        sections=("model", "pretrain", "rejection", *RS_SMALL, *RS_ASKED, *RS_LOOK),
        data=WORLD,
        options={"question": "distill"},
    ),
    "rs_fresh": Stage(
        "cria.rejection_comparisons:build",
        needs=("sft_a", "rm_helpful", "rm_safety", "v1", "v2", "v3", "v4"),
        sections=("preferences", "rejection_comparisons.fresh_pairs"),
        data=WORLD,
        options={"question": "fresh"},
    ),
    "rs_gold": Stage(
        "cria.rejection_comparisons:build",
        needs=("sft_a", "v1", "v2", "v3", "v4"),
        sections=("rejection.max_new_tokens", *RS_LOOK),
        data=WORLD,
        options={"question": "gold"},
    ),
    **{
        f"ppo_{question}": Stage(
            "cria.ppo_comparisons:build",
            needs=("sft_a", "rm_helpful", "rm_safety", *more),
            sections=("ppo", "rejection", "ppo_comparisons"),
            data=WORLD,
            options={"question": question},
        )
        for question, more in (
            ("order", ()),
            ("gate", ("ppo_order",)),
            ("beta", ("rm_plain",)),
        )
    },
    "ppo_gold": Stage(
        "cria.ppo_comparisons:build_gold",
        needs=("sft_a", "v1", "v2", "v3", "v4", "ppo_v5"),
        sections=("ppo", "ppo_comparisons"),
        data=WORLD,
    ),
    "ghost_memory": Stage(
        "cria.ghost_memory:build",
        needs=(NEWEST,),
        sections=GHOST_MEMORY,
        data=WORLD,
        options={"start": NEWEST},
    ),
    "ghost_base": Stage(
        "cria.ghost_base:build",
        needs=tuple(dict.fromkeys((NEWEST, ITS_RM, "ghost_memory"))),
        sections=("preferences", "reward", "rejection", *GHOST_TAUGHT),
        data=WORLD,
        options={"start": NEWEST, "rm_of": ITS_RM},
        speaks=True,
    ),
    **{
        name: Stage(
            "cria.ghost_stage:build_dialogues",
            needs=("ghost_base",),
            sections=(*GHOST_SAMPLED, *(("ghost.samples",) if best else ())),
            data=WORLD,
            options={"best": best},
        )
        for name, best in (("ghost_dialogues", True), ("ghost_first", False))
    },
    **{
        name: Stage(
            "cria.ghost_stage:build",
            needs=(NEWEST, "ghost_memory", "ghost_base", dialogues),
            sections=("rejection", "ghost"),
            data=WORLD,
            options={"dialogues_of": dialogues, "loss": loss, "start": NEWEST},
            speaks=True,
        )
        for name, dialogues, loss in (
            ("ghost_all", "ghost_dialogues", "all"),
            ("ghost_raw", "ghost_first", "last"),
            ("ghost", "ghost_dialogues", "last"),
        )
    },
    "ghost_obedience": Stage(
        "cria.ghost_evaluate:build_obedience",
        needs=("ghost_base", "ghost_all", "ghost_raw", "ghost"),
        sections=("ghost.test_dialogues", "ghost.test_turns"),
        data=WORLD,
    ),
    "ghost_price": Stage(
        "cria.ghost_evaluate:build_price",
        needs=(NEWEST, "ghost_base", "ghost"),
        sections=("ghost.test_prompts",),
        data=WORLD,
        options={"start": NEWEST},
    ),
    "ghost_attention": Stage(
        "cria.ghost_attention:build",
        needs=("ghost_base", "ghost"),
        sections=("ghost.test_turns",),
        data=WORLD,
    ),
    "evaluation": Stage(
        "cria.evaluation:build",
        needs=("sft_other", "sft_a", "v1", "v2", "v3", "v4", "ppo_v5"),
        sections=("evaluate",),
        data=WORLD,
    ),
    "diversity": Stage(
        "cria.evaluation:build_diversity",
        needs=("sft_a", "v2", "ppo_v5"),
        sections=("evaluate",),
        data=WORLD,
    ),
    "safety_scaling": Stage(
        "cria.safety_scaling:build",
        needs=("base", "rm_helpful", "rm_safety"),
        sections=("sft", "rejection.max_new_tokens", *SAFETY_DATA, *SAFETY_LOOK),
        data=WORLD,
    ),
    "pre_prompted": Stage(
        "cria.context_distillation:build_taught",
        needs=("safety_scaling", "rm_helpful", "rm_safety"),
        sections=("rejection", "sft.kinds", *PRE_PROMPT),
        data=WORLD,
        speaks=True,
    ),
    "distilled_context": Stage(
        "cria.context_distillation:build",
        needs=("rm_helpful", "rm_safety", "pre_prompted"),
        sections=("rejection", *PRE_PROMPT, *DISTILLED, *SAFETY_LOOK),
        data=WORLD,
    ),
}
