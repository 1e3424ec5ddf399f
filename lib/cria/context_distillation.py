"""Context distillation: what a pre-prompt makes a model say, without it (paper §4.2.4).

A pre-prompt like "you are a responsible and safe assistant" makes answers safer as
long as it stands there. Distilled, it need not: sample with it, then fine-tune on the
prompt *without* it. On prompts that were answered well already it does harm, vague
answers and false refusals; so the distilled answer is kept only where the safety
reward model scores it above the original one.

A large model knows what a pre-prompt asks of it. Ours has never met one, and a short
lesson teaches it: the start of all arms is the SFT model after `lesson`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cria import chat, checkpoints, packing, reward, side_by_side, world
from cria.config import RejectionConfig, SafetyConfig
from cria.evaluate import SAFETY
from cria.model import Llama
from cria.provenance import write_json
from cria.rejection import fine_tune
from cria.reward import RewardModel
from cria.safety_look import SafetyLook, as_lists, told
from cria.safety_scaling import EXPERTS, harmless, judges
from cria.sampling import generate
from cria.selection import Sample, best
from cria.sft import collect, documents, train_sft
from cria.tokenizer import Tokenizer
from cria.world import World
from cria.world.annotators import Demonstration, demonstrations
from cria.world.prompts import Prompt, mixture

__all__ = ["ANSWERS", "arm", "arms", "build", "build_taught", "drawn", "lesson"]

ANSWERS = "answers.json"
UNTHOUGHT = ("borderline",)  # who writes the lesson does not think of these


def lesson(village: World, config: SafetyConfig, sft, seed: int) -> list[Demonstration]:
    """Demonstrations that teach what the pre-prompt asks for.

    Under the pre-prompt, experts refuse harm, and the SFT data's own annotators answer
    harmless prompts as they always do. As many again are plain SFT demonstrations:
    without the pre-prompt the model should stay what it was.
    """
    n, key = config.lesson, 1000 * seed + 620
    n_harm = round(config.lesson_harm * n)
    usual = dict(sft.variants["a"].annotators)
    mixes = (
        (n_harm, {SAFETY: 1.0}, EXPERTS),
        (n - n_harm, harmless(sft.kinds, UNTHOUGHT), usual),
    )
    with_it = []
    for i, (several, kinds, styles) in enumerate(mixes):
        asked = mixture(village, "train", several, kinds, key + i)
        with_it += demonstrations(village, asked, styles, several, key + i)
    with_it = [replace(d, prompt=told(d.prompt, config.pre_prompt)) for d in with_it]
    plain = collect(village, replace(sft, demonstrations=n), "a", key)
    return [*with_it, *plain]


def drawn(
    model: Llama,
    vocabulary: Tokenizer,
    asked: Sequence[Prompt],
    safety: RewardModel,
    *,
    round: int,
    seed: int,
    max_new_tokens: int,
    pre_prompt: str | None = None,
) -> list[Sample]:
    """One answer to every prompt at temperature 1, with the safety RM's score.

    The model may read a pre-prompt; the reward model never does, nor is it in the
    sample: what is learnt later is the answer to the prompt alone.
    """
    read = [told(p, pre_prompt) if pre_prompt else p for p in asked]
    ids = generate(
        model,
        [chat.prompt_ids(vocabulary, p.messages) for p in read],
        max_new_tokens=max_new_tokens,
        eos_id=vocabulary.eos_id,
        seeds=seed,
    ).lists()
    plain = [chat.prompt_ids(vocabulary, p.messages) for p in asked]
    given = reward.score(safety, plain, [[answer] for answer in ids])
    return [
        Sample(prompt, tuple(answer), round, row[0])
        for prompt, answer, row in zip(asked, ids, given, strict=True)
    ]


def arms(
    original: Sequence[Sample],
    another: Sequence[Sample],
    distilled: Sequence[Sample],
) -> dict[str, list[Sample]]:
    """What each arm learns from; the same prompts in all of them.

    original, another: two answers without the pre-prompt; distilled: one with it.
    "chosen, no pre-prompt" is the control: the reward model's choice alone.
    """
    return {
        "everywhere": list(distilled),
        "where preferred": best([*original, *distilled]),
        "chosen, no pre-prompt": best([*original, *another]),
    }


def arm(
    start: Path,
    lessons: Sequence[Sample],
    config: RejectionConfig,
    look: SafetyLook,
    rms: tuple[Path, Path],
    *,
    seed: int,
    pre_prompt: str | None = None,
) -> dict:
    """The model in ``start`` after ``lessons`` (or as it is): `SafetyLook.at`."""
    model = checkpoints.load(start)
    vocabulary = Tokenizer(start / "tokenizer.model")
    if lessons:
        fine_tune(model, vocabulary, lessons, config, seed=seed, progress=False)
    return as_lists(look.at(model, vocabulary, rms, pre_prompt))


def build_taught(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `pre_prompted`: the SFT model after the lesson on the pre-prompt."""
    sft = upstream["sft_a"]
    model, vocabulary = sft.model(), sft.tokenizer()
    written = lesson(world.load(), config.safety, config.sft, seed)
    docs = documents(vocabulary, written, config.sft.separator)
    rows = packing.pack(docs, config.sft.seq_len)
    metrics = train_sft(model, rows, config.sft, seed=seed, label="lesson")
    checkpoints.save(model, out / "model", vocabulary)
    return {"demonstrations": len(written), "loss": metrics[-1]["loss"]}


def build(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `distilled_context`: what was seen of the SFT model, of it after the
    lesson without ("before") and with the pre-prompt, and of every arm; `ANSWERS`
    holds the answers that the arms learn from, beside each other."""
    c, start = config.safety, upstream["pre_prompted"].path / "model"
    rms, new_tokens = judges(upstream), config.rejection.max_new_tokens
    model, vocabulary = checkpoints.load(start), Tokenizer(start / "tokenizer.model")
    key = 1000 * seed + 630
    asked = mixture(
        world.load(), "train", c.distilled, dict(c.distilled_kinds), key, unique=True
    )
    safety = reward.load(rms[1])
    several = [
        drawn(
            model,
            vocabulary,
            asked,
            safety,
            round=i,
            seed=key + i,
            max_new_tokens=new_tokens,
            pre_prompt=text,
        )
        for i, text in enumerate((None, None, c.pre_prompt))
    ]
    learnt = arms(*several)
    common = {
        "config": config.rejection,
        "look": SafetyLook(c.gold_per_kind, c.gold_answers, seed, new_tokens),
        "rms": rms,
        "seed": seed,
    }
    jobs = {
        "SFT": {"start": upstream["sft_a"].path / "model", "lessons": ()},
        "before": {"start": start, "lessons": ()},
        "with the pre-prompt": {
            "start": start,
            "lessons": (),
            "pre_prompt": c.pre_prompt,
        },
        **{name: {"start": start, "lessons": s} for name, s in learnt.items()},
    }
    original, _, distilled = several
    rows = [
        {
            "kind": a.prompt.kind,
            "question": a.prompt.question,
            "original": vocabulary.decode(list(a.ids)).strip(),
            "distilled": vocabulary.decode(list(b.ids)).strip(),
            "r_original": a.score,
            "r_distilled": b.score,
        }
        for a, b in zip(original, distilled, strict=True)
    ]
    write_json(out / ANSWERS, rows)
    seen = side_by_side.run(arm, {name: common | job for name, job in jobs.items()})
    return {"prompts": len(asked), "arms": seen}
