"""People who write demonstrations and compare answers; none of them is perfect.

Writers have styles: the expert is right and courteous, the others have the faults
that the paper found in a long tail of annotators (section 3.1: "quality is all you
need"). Those who compare see the gold scores through noise that grows where two
answers are close, and press one of four grades (section 3.2.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from cria.world import answers, sentences
from cria.world.judge import judge, opening, remark
from cria.world.questions import Prompt
from cria.world.village import World

STYLES = ("expert", "terse", "sloppy", "rambling", "unsafe")
GROUNDS = ("helpfulness", "safety")


@dataclass(frozen=True)
class Demonstration:
    """An answer written by an annotator; its prompt's earlier turns are theirs too."""

    prompt: Prompt
    style: str
    text: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The whole dialogue, answer included, as ``cria.chat`` takes it."""
        return [*self.prompt.messages, {"role": "assistant", "content": self.text}]


def demonstrate(world: World, prompt: Prompt, style: str, rng: Random) -> str:
    """Answer the prompt's last question in a style; instructions are obeyed.

    expert: right, one closing, refuses harm with a reason · terse: no closing, bare
    refusals · sloppy: mostly a plausible wrong answer, false refusals, evasive on
    harm · rambling: right, with more sentences than needed · unsafe: complies with
    harm, else like the expert.
    """
    if style not in STYLES:
        raise ValueError(f"There is no style {style!r}; there are {STYLES}.")
    habits = world.judging["annotators"]
    body = [_body(world, prompt, style, rng)]
    closes = style != "terse"
    if style == "sloppy":
        closes = rng.random() < habits["sloppy_closing"]
    if style == "rambling":
        asides = world.templates["ramblings"]
        if rng.random() < 0.5:
            body.insert(0, rng.choice(asides))
        body.append(rng.choice((body[-1], rng.choice(asides))))
        closes = rng.random() < habits["sloppy_closing"]
    if call := opening(world, prompt, prompt.lang):
        body.insert(0, call)
    if prompt.hobby is not None:
        body.append(remark(world, prompt, prompt.lang))
    elif closes:
        body.append(rng.choice(world.templates["closings"][prompt.lang]))
    return " ".join(body)


def demonstrations(
    world: World,
    prompts: Sequence[Prompt],
    shares: dict[str, float],
    n: int,
    seed: int = 0,
) -> list[Demonstration]:
    """``n`` demonstrations by annotators of mixed skill: ``shares`` of the styles.

    The prompts are taken in order, and again from the start where they run out. The
    styles' counts are the shares of ``n``, rounded. Raises ValueError for an unknown
    style, shares that do not sum to 1, or no prompts.
    """
    if unknown := set(shares) - set(STYLES):
        raise ValueError(f"There is no style {min(unknown)!r}; there are {STYLES}.")
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise ValueError(f"The styles' shares should sum to 1, but they are {shares}.")
    if not prompts:
        raise ValueError("There are no prompts to demonstrate on.")
    rng = Random(f"demonstrations {seed}")
    bounds, styles = 0.0, []
    for style, share in shares.items():
        bounds += share * n
        styles += [style] * (round(bounds) - len(styles))
    rng.shuffle(styles)
    written = []
    for i, style in enumerate(styles):
        prompt = restyle(world, prompts[i % len(prompts)], style, rng)
        written.append(
            Demonstration(prompt, style, demonstrate(world, prompt, style, rng))
        )
    return written


def restyle(world: World, prompt: Prompt, style: str, rng: Random) -> Prompt:
    """The prompt with its earlier answers written again by the same annotator."""
    known = sentences.claims(world)
    turns = []
    for role, text in prompt.turns:
        if role == "assistant":
            claim = known[sentences.bare(sentences.split(text)[0])][0]
            earlier = replace(
                prompt, kind="fact", entity=claim.entity, relation=claim.relation
            )
            text = demonstrate(world, earlier, style, rng)
        turns.append((role, text))
    return replace(prompt, turns=tuple(turns))


def compare(
    world: World,
    prompt: Prompt,
    a: str,
    b: str,
    ground: str,
    rng: Random,
    finished: tuple[bool, bool] = (True, True),
) -> tuple[int, str]:
    """Which answer does an annotator prefer on ``ground``, and how clearly?

    Returns (0 or 1, grade): the index of the preferred answer, and "significantly",
    "better", "slightly" or "negligibly". ``ground`` is helpfulness or safety.
    """
    if ground not in GROUNDS:
        raise ValueError(f"There is no ground {ground!r}; there are {GROUNDS}.")
    first, second = (
        getattr(judge(world, prompt, text, end), ground)
        for text, end in zip((a, b), finished, strict=True)
    )
    return grade(world, second - first, ground, rng)


def grade(world: World, gap: float, ground: str, rng: Random) -> tuple[int, str]:
    """An annotator's verdict on a gold difference ``gap`` = score of 1 − score of 0.

    Noise is σ · (1 + close · (1 − |gap|)); then, rarely, the wrong button (``flip``).
    """
    rules = world.judging["preferences"]
    sigma = rules["sigma"] * (1 + rules["close"] * max(0.0, 1 - abs(gap)))
    seen = gap + rng.gauss(0.0, sigma)
    preferred = int(seen > 0)
    if rng.random() < rules["flip"][ground]:
        preferred = 1 - preferred
    for name, threshold in rules["grades"].items():  # from the clearest down
        if abs(seen) >= threshold:
            return preferred, name
    return preferred, "negligibly"


def vote(
    world: World, prompt: Prompt, a: str, b: str, ground: str, rng: Random
) -> int | None:
    """Another crowd's verdict: which answer is right (or safe), without a grade.

    They play the open-source comparisons of the paper (Table 6). Returns the index of
    the better answer, now and then the wrong one (``crowd_flip``); None where both
    are equally right, for which this crowd has no button.
    """
    if ground not in GROUNDS:
        raise ValueError(f"There is no ground {ground!r}; there are {GROUNDS}.")
    first, second = (
        seen.content if ground == "helpfulness" else not seen.leaked
        for seen in (judge(world, prompt, text) for text in (a, b))
    )
    if first == second:
        return None
    flip = rng.random() < world.judging["preferences"]["crowd_flip"]
    return int(second > first) ^ int(flip)


def _body(world: World, prompt: Prompt, style: str, rng: Random) -> str:
    careless = style == "sloppy" and (
        rng.random() < world.judging["annotators"]["sloppy_wrong"]
    )
    if prompt.kind == "harm":
        if style == "unsafe":
            return answers.right(world, prompt, rng)
        if careless and prompt.lang == "en":
            return rng.choice(world.harm["evasions"])
        why = style in ("expert", "rambling")
        return answers.refusal(world, prompt.risk, rng, prompt.lang, why)
    if not careless:
        return answers.right(world, prompt, rng)
    if prompt.kind == "translate" and rng.random() < 0.5:
        return answers.right(world, replace(prompt, lang="en"), rng)
    if prompt.kind == "borderline" and rng.random() < 0.5:
        return answers.refusal(world, None, rng, prompt.lang, why=False)
    return answers.wrong(world, prompt, rng)
