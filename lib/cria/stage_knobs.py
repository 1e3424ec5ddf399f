"""The single knobs that a stage reads, where it does not read a whole section.

A stage's key holds what it reads: turning any other knob leaves it as it is.
"""

from __future__ import annotations


def _knobs(section: str, names: str) -> tuple[str, ...]:
    """("ghost", "keep kept") → ("ghost.keep", "ghost.kept")."""
    return tuple(f"{section}.{name}" for name in names.split())


RS_ASKED = (
    *_knobs("rejection_comparisons", "prompts temperature"),
    "ppo.safety_gate",
)
RS_LOOK = _knobs("rejection_comparisons", "gold_per_kind gold_answers")
RS_SMALL = ("comparisons.reward_models", "rejection_comparisons.small_model")

SAFETY_DATA = _knobs("safety", "helpful safety shares")
SAFETY_LOOK = _knobs("safety", "gold_per_kind gold_answers")
PRE_PROMPT = _knobs("safety", "pre_prompt lesson lesson_harm")
DISTILLED = _knobs("safety", "distilled distilled_kinds")

GHOST_WISHES = _knobs("ghost", "max_turns short_share combine_share")
GHOST_MEMORY = _knobs("ghost", "wordings own_answers own_kinds texts text_mix dtype")
GHOST_TAUGHT = (
    *GHOST_WISHES,
    *_knobs("ghost", "wordings list_samples single_turns strange_share"),
    *_knobs("ghost", "told_dialogues plain_dialogues"),
    *_knobs("ghost", "drills drill_rows drill_optim"),
    *_knobs("ghost", "rm_pairs teach_seq_len teach_optim"),
    *_knobs("ghost", "keep kept batch_size seq_len optim dtype"),
)
GHOST_SAMPLED = (*GHOST_WISHES, *_knobs("ghost", "dialogues temperature dtype"))
