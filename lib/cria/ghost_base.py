"""Stage `ghost_base`: the newest chat model learns to obey when it is told (ours).

It lists figures and hobbies first (`cria.ghost_lists`), then reads the lessons of
`cria.ghost_lessons`, held to what it was (`cria.ghost_memory`). Its reward model has
never seen an instruction either, and would prefer the answers that it knows: it
learns from fresh comparisons, as after every round of rejection sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from cria import checkpoints, packing, preferences, reward, world
from cria.config import GhostConfig, PreferencesConfig, RewardConfig
from cria.ghost import Lists, train_ghost
from cria.ghost_lessons import dialogues, drills, short_lessons, wishes_for, words
from cria.ghost_lists import listed, value_lists, worth_keeping
from cria.ghost_memory import read_memory, train_keeping
from cria.model import Llama
from cria.packing import Document
from cria.preferences import Comparison
from cria.provenance import write_json
from cria.reward import RewardModel
from cria.reward_data import encode
from cria.reward_training import go_on
from cria.tokenizer import TAGS, Tokenizer
from cria.world import World
from cria.world.annotators import grade
from cria.world.instructions import instruct, obeys
from cria.world.judge import judge
from cria.world.prompts import mixture

__all__ = ["build", "compare_obedience", "teach"]

# Of single questions and of drills: beside the single turns, and beside the dialogues.
# A few drills keep up what the first ones have taught.
SHORT_SHARES, LONG_SHARES = (1.0, 0.12), (0.33, 0.08)


def teach(
    model: Llama,
    teacher: Llama,
    vocabulary: Tokenizer,
    village: World,
    lists: Lists,
    c: GhostConfig,
    kinds: Mapping[str, float],
    kept: Sequence[Document],
    *,
    seed: int,
    out: Path | None = None,
) -> list[list[dict]]:
    """Train ``model`` in place: drills, then single turns, then dialogues; the metrics
    of each.

    Copying comes first, so that it is there, or nearly, with the first instruction: a
    model without it learns by heart what to say to each name. It asks for many steps at
    a high rate, `c.drill_rows` rows each. Long dialogues ask for long rows.
    teacher: the model as it was, which it is held to all the time, on ``kept``.
    """
    given = (vocabulary, village)
    short = {
        "drills": (
            drills(vocabulary, words(village, lists), c.drills, 10 * seed),
            c.drill_rows,
            c.drill_optim,
        ),
        "single turns": (
            short_lessons(*given, lists, c, kinds, SHORT_SHARES, 10 * seed),
            c.batch_size,
            c.teach_optim,
        ),
    }
    parts = []
    for name, (lessons, rows, optim) in short.items():
        if not lessons:
            continue
        folder = f"training-{name.split()[0]}"
        parts.append(
            train_keeping(
                model,
                teacher,
                packing.pack(lessons, c.teach_seq_len),
                kept,
                c,
                optim,
                1,
                batch_size=rows,
                seed=seed,
                out=out and out / folder,
                label=name,
            )
        )
    long = [
        *dialogues(*given, lists, c, c.told_dialogues, 10 * seed + 1),
        *dialogues(*given, None, c, c.plain_dialogues, 10 * seed + 2),
        *short_lessons(*given, lists, c, kinds, LONG_SHARES, 10 * seed + 3),
    ]
    last = train_ghost(
        model,
        teacher,
        long,
        kept,
        c,
        epochs=1,
        seed=seed,
        out=out and out / "training-long",
        label="long dialogues",
    )
    return [*parts, last]


def compare_obedience(
    models: Sequence[Llama],
    vocabulary: Tokenizer,
    village: World,
    lists: Lists,
    c: GhostConfig,
    kinds: dict,
    config: PreferencesConfig,
    seed: int,
) -> list[Comparison]:
    """Comparisons of answers under an instruction, in one turn.

    The annotators are told that an answer that does not obey is no help. One of the
    two answers may come from a model that was never taught to.
    """
    rng = Random(f"obedience {seed}")
    asked = mixture(village, c.wordings, c.rm_pairs, dict(kinds), seed)
    wishes = wishes_for(lists, c, asked, seed)
    told = [instruct(village, w, p) for w, p in zip(wishes, asked, strict=True)]
    pairs = preferences.answer_pairs(models, vocabulary, told, config, seed)
    made = []
    for wish, pair in zip(wishes, pairs, strict=True):
        if pair[0].text == pair[1].text:
            continue
        if any(tag in a.text for tag in TAGS for a in pair):
            continue
        gold = [
            judge(village, a.prompt, a.text, a.finished).helpfulness
            * obeys(village, wish, a.prompt, a.text)
            for a in pair
        ]
        chosen, pressed = grade(village, gold[1] - gold[0], "helpfulness", rng)
        first, second = (pair[1], pair[0]) if chosen else pair
        made.append(
            Comparison(
                turns=first.prompt.turns,
                chosen=first.text,
                rejected=second.text,
                grade=pressed,
                ended=(first.finished, second.finished),
                prompt=first.prompt,
            )
        )
    return made


def refresh(
    rm: RewardModel,
    fresh: Sequence[Comparison],
    vocabulary: Tokenizer,
    config: RewardConfig,
    *,
    lr: float,
    seed: int,
    out: Path | None = None,
) -> None:
    """The helpfulness RM, in place, learns what obeying is worth."""
    go_on(
        rm,
        encode(vocabulary, fresh, config.margins[config.margin]),
        replace(config, optim=replace(config.optim, lr=lr)),
        seed=seed,
        out=out and out / "training-rm",
        label="helpfulness RM, with instructions",
    )


def build(
    config, seed: int, upstream: Mapping, out: Path, start: str, rm_of: str
) -> dict:
    """Stage `ghost_base`: model/, the reward model rm/ and lists.json.

    start: the stage whose model goes on.  rm_of: the round whose reward model goes on.
    """
    village, c = world.load(), config.ghost
    vocabulary, model = upstream[start].tokenizer(), upstream[start].model()
    answers = listed(model, vocabulary, village, c.list_samples, seed)
    sampled = worth_keeping(village, answers)
    lists = value_lists(village, sampled)
    write_json(out / "lists.json", {"sampled": sampled, "lists": lists})
    teacher, kinds = upstream[start].model(), dict(config.rejection.kinds)
    kept = read_memory(upstream["ghost_memory"].path)
    parts = teach(
        model, teacher, vocabulary, village, lists, c, kinds, kept, seed=seed, out=out
    )
    checkpoints.save(model, out / "model", vocabulary)
    rm_helpful = reward.load(upstream[rm_of].path / "rm_helpfulness")
    fresh = compare_obedience(
        [model, teacher],
        vocabulary,
        village,
        lists,
        c,
        config.preferences.kinds["helpfulness"],
        config.preferences,
        seed,
    )
    if len(fresh) >= config.reward.batch_size:
        lr = config.rejection.refresh_lr
        refresh(rm_helpful, fresh, vocabulary, config.reward, lr=lr, seed=seed, out=out)
    reward.save(rm_helpful, out / "rm", vocabulary)
    for unfinished in out.glob("training-*/training.safetensors"):
        unfinished.unlink()  # only a run that stopped needs it
    return {
        "sampled": {name: len(words) for name, words in sampled.items()},
        "list_answers": len(answers),
        "comparisons": len(fresh),
        "loss": parts[-1][-1]["loss"],
        "seconds_training": sum(metrics[-1]["seconds"] for metrics in parts),
    }
