"""Context distillation: what a pre-prompt makes a model say, without it (paper §4.2.4).

A pre-prompt like "you are a responsible and safe assistant" makes answers safer as
long as it stands there. Distilled, it need not: sample with it, then fine-tune on the
prompt *without* it. On prompts that were answered well already it does harm: vague
answers, false refusals. So the paper distils adversarial prompts only, and keeps the
new answer only where the safety reward model scores it above the original one.

A large model knows what a pre-prompt asks of it. Ours has never met one, and a short
lesson teaches it. All arms start from the model after that lesson: it was trained
without safety data (the first arm of `cria.safety_scaling`), and refuses little as
long as the pre-prompt does not stand there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cria import chat, checkpoints, reward, side_by_side, world
from cria.config import RejectionConfig, SafetyConfig
from cria.evaluate import SAFETY
from cria.model import Llama
from cria.provenance import write_json
from cria.rejection import fine_tune
from cria.reward import RewardModel
from cria.safety_look import SafetyLook, as_lists, forewarned
from cria.safety_scaling import EXPERTS, harmless, judges
from cria.sampling import generate
from cria.selection import Sample, best
from cria.tokenizer import Tokenizer
from cria.world import World
from cria.world.annotators import Demonstration, demonstrations
from cria.world.prompts import Prompt, mixture

__all__ = ["ANSWERS", "arm", "arms", "as_sample", "build", "build_taught"]
__all__ += ["drawn", "lesson"]

ANSWERS = "answers.json"
UNTHOUGHT = ("borderline",)  # who writes the lesson does not think of these


def lesson(
    village: World, config: SafetyConfig, kinds: Mapping[str, float], seed: int
) -> tuple[list[Demonstration], list[Demonstration]]:
    """(with, without): demonstrations by experts that teach what the pre-prompt asks
    for, and what goes on without it.

    With it they refuse harm, and answer some harmless prompts; without it they answer
    harmless prompts only.
    """
    n, key = config.lesson, 1000 * seed + 620
    n_harm = round(config.lesson_harm * n)
    mixes = (
        (n_harm, {SAFETY: 1.0}),
        (n - n_harm, harmless(kinds, UNTHOUGHT)),
        (n, harmless(kinds)),
    )
    harm, few, without = (
        demonstrations(
            village,
            mixture(village, "train", several, shares, key + i),
            EXPERTS,
            several,
            key + i,
        )
        if several
        else []
        for i, (several, shares) in enumerate(mixes)
    )
    before = [
        replace(d, prompt=forewarned(d.prompt, config.pre_prompt))
        for d in (*harm, *few)
    ]
    return before, without


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
    read = [forewarned(p, pre_prompt) if pre_prompt else p for p in asked]
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
    "paper's recipe" distils only prompts that ask for harm, and of these only where the
    safety reward model prefers it. "no pre-prompt" is its control: the reward model
    chooses as well, but from two answers without the pre-prompt.
    """

    def on_harm(other: Sequence[Sample]) -> list[Sample]:
        harmful = [s for s in other if s.prompt.kind == SAFETY]
        return best([*original, *harmful])

    return {
        "everywhere": list(distilled),
        "where preferred": best([*original, *distilled]),
        "paper's recipe": on_harm(distilled),
        "no pre-prompt": on_harm(another),
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
    """Stage `pre_prompted`: the model without safety data, after the lesson.

    Its own answers to the lesson's harmful prompts are part of the lesson: without the
    pre-prompt it should go on as before.
    """
    start = upstream["safety_scaling"].path / "model"
    model, vocabulary = checkpoints.load(start), Tokenizer(start / "tokenizer.model")
    c, village = config.rejection, world.load()
    before, without = lesson(village, config.safety, config.sft.kinds, seed)
    asked = mixture(
        village,
        "train",
        round(config.safety.lesson_harm * config.safety.lesson),
        {SAFETY: 1.0},
        1000 * seed + 620,
    )
    own = drawn(
        model,
        vocabulary,
        asked,
        reward.load(judges(upstream)[1]),
        round=0,
        seed=1000 * seed + 625,
        max_new_tokens=c.max_new_tokens,
    )
    written = [as_sample(vocabulary, d) for d in (*before, *without)]
    metrics = fine_tune(
        model, vocabulary, [*written, *own], c, seed=seed, label="lesson"
    )
    checkpoints.save(model, out / "model", vocabulary)
    return {
        "demonstrations": len(written),
        "own_answers": len(own),
        "loss": metrics[-1]["loss"],
    }


def as_sample(vocabulary: Tokenizer, written: Demonstration) -> Sample:
    """A demonstration as something to learn from; nobody has scored it."""
    prompt = chat.prompt_ids(vocabulary, written.prompt.messages)
    ids, _ = chat.encode_dialog(vocabulary, written.messages)
    return Sample(written.prompt, tuple(ids[len(prompt) :]), 0, 0.0)


def build(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `distilled_context`: what was seen after the lesson, without ("before")
    and with the pre-prompt, and of every arm; `ANSWERS` holds the answers that the arms
    learn from, beside each other."""
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
