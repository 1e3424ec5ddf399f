"""The tiny world: a village small enough to know everything about.

``reading`` turns the tables and templates of ``data/`` into a ``village``; ``corpora``
writes texts for pre-training; ``questions`` and ``prompts`` ask; ``answers`` knows what
is right (and plausibly wrong); ``sentences`` reads an answer, ``content`` and ``judge``
score it; ``annotators`` write and compare answers as people of mixed skill do;
``instructions`` are wishes to hold through a dialogue.
"""

from cria.world.reading import load
from cria.world.tables import WorldError
from cria.world.village import World

__all__ = ["World", "WorldError", "load"]
