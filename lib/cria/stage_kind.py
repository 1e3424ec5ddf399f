"""What a stage is, and what of the code and the data counts in no stage's key.

Which stages there are says `cria.stage_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["NOT_WORLD", "SETTINGS", "Stage"]

# Of these the values count, section by section, and not the code that reads and
# checks them: a new knob for one stage leaves the others as they are.
SETTINGS = tuple(
    f"cria.{name}"
    for name in ("config", "config_comparisons", "config_reading", "config_rlhf")
)
NOT_WORLD = ("findings.yaml",)  # the ledger's claims: no stage reads them


@dataclass(frozen=True)
class Stage:
    """How one stage is made.

    build: the function, as "module:function" (imported only when it is run).
    needs: the stages it starts from.  sections: the parts of the config it reads,
    whole ("reward") or a single knob ("ppo.safety_gate").
    data: the files of data/ it reads, as patterns.  options: further arguments.
    speaks: it holds a model one can talk to.
    """

    build: str | Callable[..., dict]
    needs: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    speaks: bool = False

    @property
    def function(self) -> str:
        """The function as "module:function"."""
        if isinstance(self.build, str):
            return self.build
        return f"{self.build.__module__}:{self.build.__qualname__}"
