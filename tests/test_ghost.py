"""Ghost Attention: what is said, what is learnt, and what leaks no gradient."""

from collections import Counter

import pytest
import torch

from cria import config, ghost, stages, world
from cria.chat import encode_dialog
from cria.model import Llama
from cria.sft import sft_loss
from cria.world.instructions import KINDS, Instruction, text

SMOKE = config.load("smoke")
WISH = "Act as Napoleon."
DIALOGUE = [
    {"role": "user", "content": "What is 1 plus 2?"},
    {"role": "assistant", "content": "Napoleon here: 1 and 2 make 3."},
    {"role": "user", "content": "Where does Anna live?"},
    {"role": "assistant", "content": "Napoleon here: Anna lives in Brill."},
    {"role": "user", "content": "What is 2 plus 2?"},
    {"role": "assistant", "content": "Napoleon here: 2 and 2 make 4."},
]
LISTS = {
    "language": ["fr", "es"],
    "figure": ["Napoleon", "Caesar", "Nero", "Plato", "Homer", "Dante"],
    "hobby": ["tennis", "chess", "golf", "judo", "yoga"],
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    made = stages.get("tokenizer", SMOKE, 0, cache, say=lambda line: None)
    return made.tokenizer()


def test_attach_tells_every_question_and_once_only_the_first():
    told, first = ghost.attach(DIALOGUE, WISH), ghost.once(DIALOGUE, WISH)
    assert [WISH in m["content"] for m in told] == [True, False] * 3
    assert [WISH in m["content"] for m in first] == [True] + [False] * 5
    for said in (told, first):
        bare = [m["content"].removeprefix(f"{WISH} ") for m in said]
        assert bare == [m["content"] for m in DIALOGUE]
    assert WISH not in DIALOGUE[0]["content"]  # the argument stays as it was


def test_only_the_last_answer_counts(vocabulary):
    ids, mask = ghost.ghost(vocabulary, DIALOGUE, WISH)
    counted = [i for i, m in zip(ids, mask, strict=True) if m]
    assert counted[-1] == vocabulary.eos_id
    assert vocabulary.decode(counted).strip() == DIALOGUE[-1]["content"]
    assert mask == [False] * (len(ids) - len(counted)) + [True] * len(counted)


def test_the_control_counts_every_answer(vocabulary):
    ids, mask = ghost.every_answer(vocabulary, DIALOGUE, WISH)
    assert ids == ghost.ghost(vocabulary, DIALOGUE, WISH)[0]
    counted = vocabulary.decode([i for i, m in zip(ids, mask, strict=True) if m])
    answers = [m["content"] for m in DIALOGUE[1::2]]
    assert all(answer in counted for answer in answers)
    assert all(m["content"] not in counted for m in DIALOGUE[::2])


def test_the_loss_on_all_turns_is_that_of_every_beginning(vocabulary):
    """Each answer of the control is the last answer of a shorter dialogue."""
    _, whole = ghost.every_answer(vocabulary, DIALOGUE, WISH)
    parts = [ghost.ghost(vocabulary, DIALOGUE[: 2 * n], WISH)[1] for n in (1, 2, 3)]
    assert sum(map(sum, parts)) == sum(whole)
    for mask in parts:
        assert all(m <= w for m, w in zip(mask, whole, strict=False))


def test_ids_are_meta_s_layout_with_the_system_message_in_the_first_turn(vocabulary):
    ids, mask = ghost.ghost(vocabulary, DIALOGUE, WISH, system=True)
    users, answers = ([m["content"] for m in DIALOGUE[i::2]] for i in (0, 1))
    users[0] = f"<<SYS>>\n{WISH}\n<</SYS>>\n\n{users[0]}"
    by_hand = []
    for user, answer in zip(users, answers, strict=True):
        by_hand += vocabulary.encode(
            f"[INST] {user} [/INST] {answer} ", bos=True, eos=True
        )
    assert ids == by_hand
    last = vocabulary.encode(f"[INST] {users[-1]} [/INST]", bos=True)
    pair = vocabulary.encode(
        f"[INST] {users[-1]} [/INST] {answers[-1]} ", bos=True, eos=True
    )
    assert sum(mask) == len(pair) - len(last)


def gradient(model, ids, mask):
    batch = {
        "ids": torch.tensor([ids]),
        "doc_ids": torch.zeros(1, len(ids), dtype=torch.long),
        "loss_mask": torch.tensor([mask]),
    }
    states = model.tok_embeddings(batch["ids"])
    model.zero_grad()
    sft_loss(model, batch)[0].backward()
    return states, model.output.weight.grad.clone()


def test_what_earlier_answers_say_is_no_target(vocabulary):
    """Poison: other words in an earlier answer, as targets, change no loss at all
    once the model cannot read them either."""
    model = Llama(SMOKE.model, seed=0)
    for layer in model.layers:  # a model that sees only the token before
        layer.attention.wo.weight.data.zero_()
    poisoned = [dict(m) for m in DIALOGUE]
    poisoned[1]["content"] = poisoned[3]["content"] = "I was here all along."
    grads = [
        gradient(model, *ghost.ghost(vocabulary, said, WISH))[1]
        for said in (DIALOGUE, poisoned)
    ]
    assert torch.equal(*grads)
    leaky = [
        gradient(model, *ghost.every_answer(vocabulary, said, WISH))[1]
        for said in (DIALOGUE, poisoned)
    ]
    assert not torch.equal(*leaky)


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
@pytest.mark.parametrize("how", [ghost.attach, ghost.once])
def test_an_instruction_with_a_tag_is_refused(vocabulary, how, tag):
    with pytest.raises(ValueError, match="tag of the chat format"):
        how(DIALOGUE, f"Act as {tag}.")
    for system in (False, True):
        with pytest.raises(ValueError, match="tag of the chat format"):
            ghost.ghost(vocabulary, DIALOGUE, f"Act as {tag}.", system=system)


def test_a_dialogue_without_an_answer_at_the_end_is_refused(vocabulary):
    for said in (DIALOGUE[:-1], []):
        with pytest.raises(ValueError, match="must end with an answer"):
            ghost.ghost(vocabulary, said, WISH)


def test_instructions_are_combined_and_shortened_at_random():
    drawn = ghost.instructions(LISTS, 2000, seed=0)
    assert drawn == ghost.instructions(LISTS, 2000, seed=0)
    assert drawn != ghost.instructions(LISTS, 2000, seed=1)
    assert set(Counter(wish.kind for wish in drawn)) == set(KINDS)
    assert 0.45 < sum("+" in wish.kind for wish in drawn) / 2000 < 0.55
    assert 0.45 < sum(wish.short for wish in drawn) / 2000 < 0.55
    few = ghost.instructions(LISTS, 500, seed=0, short_share=0, combine_share=0)
    assert not any(wish.short or "+" in wish.kind for wish in few)
    for wish in drawn:
        for name in wish.kind.split("+"):
            assert getattr(wish, name) in LISTS[name]


def test_combinations_that_are_put_aside_are_never_trained_on():
    def combined(**options):
        drawn = ghost.instructions(LISTS, 900, seed=3, **options)
        return {(w.language, w.figure, w.hobby) for w in drawn if "+" in w.kind}

    trained = combined()
    aside = set()
    for kind in KINDS[3:]:
        aside |= combined(kind=kind, aside=True)
    assert trained and aside and not trained & aside
    everything = 2 * 6 + 2 * 5 + 6 * 5
    assert len(trained | aside) == everything
    with pytest.raises(ValueError, match="too few values"):
        one = {name: values[:1] for name, values in LISTS.items()}
        for kind in KINDS[3:]:  # one in five is put aside: not all three of these
            ghost.instructions(one, 1, seed=0, kind=kind, aside=True)
    both = Instruction(figure="Nero", hobby="chess")
    for short in (False, True):  # the form makes no other combination
        assert ghost.put_aside(both) == ghost.put_aside(
            Instruction(figure="Nero", hobby="chess", short=short)
        )


def test_one_kind_alone_can_be_drawn():
    drawn = ghost.instructions(LISTS, 50, seed=0, kind="hobby", aside=True)
    assert {wish.kind for wish in drawn} == {"hobby"}


def test_training_learns_the_last_answer(vocabulary):
    model = Llama(SMOKE.model, seed=0)
    document = ghost.ghost(vocabulary, DIALOGUE, WISH)
    settings = config.load(
        "smoke", **{"ghost.epochs": 20, "ghost.optim.lr": 5e-3}
    ).ghost
    rows = ghost.train_ghost(
        model, model, [document] * 4, [], settings, seed=0, progress=False
    )
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


def test_the_ids_are_those_of_the_dialogue_told_once(vocabulary):
    told = ghost.once(DIALOGUE, WISH)
    assert (
        ghost.ghost(vocabulary, DIALOGUE, WISH)[0] == encode_dialog(vocabulary, told)[0]
    )


def test_the_village_words_instructions_as_the_course_does():
    assert text(world.load(), Instruction(figure="Napoleon")) == WISH
