"""Things to click in a notebook; where nothing can be clicked, they are a sentence."""

from __future__ import annotations

import html

import ipywidgets

from cria.talk import Conversation, Speaker


class ChatBox(ipywidgets.VBox):
    """A conversation in a notebook: type, press Enter, read; "new" begins again.

    Without a kernel behind the page (the web book, a saved copy) it is one sentence.
    """

    def __init__(self, speaker: Speaker, seed: int = 0, **options) -> None:
        self.conversation = Conversation(speaker, seed, options)
        self.talk = ipywidgets.HTML()
        self.input = ipywidgets.Text(
            placeholder="ask, and press Enter",
            continuous_update=False,  # a value is whole when Enter is pressed
            layout={"width": "80%"},
        )
        self.anew = ipywidgets.Button(description="new", layout={"width": "15%"})
        self.input.observe(self._asked, names="value")
        self.anew.on_click(lambda _: self._forget())
        row = ipywidgets.HBox([self.input, self.anew])
        super().__init__([self.talk, row], layout={"max_width": "40em"})

    def _asked(self, change: dict) -> None:
        text = change["new"].strip()
        if not text:
            return
        self._write("you", text)
        try:
            answer = self.conversation.say(text) or "(no words)"
            self._write(self.conversation.speaker.name, answer)
        except ValueError as error:
            self._write("", str(error))
        self.input.value = ""

    def _forget(self) -> None:
        self.conversation.forget()
        self.talk.value = ""

    def _write(self, who: str, text: str) -> None:
        name = f"<b>{html.escape(who)}:</b> " if who else ""
        self.talk.value += f"<div>{name}{html.escape(text)}</div>"

    def _repr_mimebundle_(self, **options) -> dict:
        bundle = super()._repr_mimebundle_(**options)
        name = self.conversation.speaker.name
        said = f"A box to talk to {name}: it answers in JupyterLab (make lab)."
        bundle["text/plain"] = said
        return bundle
