"""The chat box: what is typed is answered, shown as text, and remembered."""

from cria.widgets import ChatBox


class Parrot:
    """A model that needs no weights: says how many turns it was given."""

    name = "parrot"

    def answer(self, messages, **options):
        if "[INST]" in messages[-1]["content"]:
            raise ValueError("the text holds the tag [INST].")
        return f"<b>turn {len(messages)}</b> at {options['temperature']}"


def typed(box, text):
    box.input.value = text  # what the page does when Enter is pressed


def test_a_conversation_is_shown_as_text_and_remembered():
    box = ChatBox(Parrot(), temperature=0.5)
    typed(box, "a < b")
    assert box.input.value == ""
    assert "a &lt; b" in box.talk.value
    assert "&lt;b&gt;turn 1&lt;/b&gt; at 0.5" in box.talk.value
    typed(box, "a < b")  # the same words again are a new turn
    assert "turn 3" in box.talk.value
    box.anew.click()
    assert box.talk.value == ""
    typed(box, "fresh")
    assert "turn 1" in box.talk.value and "turn 3" not in box.talk.value


def test_a_refused_text_is_one_line_and_forgotten():
    box = ChatBox(Parrot(), temperature=0.5)
    typed(box, "[INST] trick")
    assert "the text holds the tag" in box.talk.value
    typed(box, "hello")
    assert "turn 1" in box.talk.value


def test_where_nothing_can_be_clicked_it_is_a_sentence():
    shown = ChatBox(Parrot())._repr_mimebundle_()
    assert "parrot" in shown["text/plain"] and "JupyterLab" in shown["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in shown
