"""Turn a YAML file into frozen dataclasses, with errors a person can act on.

Nothing here knows Cria: `build` reads the fields and the type hints of whatever
dataclass it is given. The sections themselves are in `config_stages.py` and
`config_rlhf.py`.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml


class ConfigError(ValueError):
    """One sentence about one key; `{key}` in it stands for the dotted path."""

    def __init__(self, key: str, sentence: str, file: str = ""):
        self.key, self.sentence, self.file = key, sentence, file
        text = sentence.replace("{key}", key)
        super().__init__(f"{file}: {text}" if file else text)

    def inside(self, section: str) -> ConfigError:
        """The same error, seen from the section that holds it."""
        return ConfigError(join(section, self.key), self.sentence, self.file)

    def in_file(self, file: str) -> ConfigError:
        """The same error, with the name of the file in front."""
        return self if self.file else ConfigError(self.key, self.sentence, file)


def join(path: str, key: str) -> str:
    """`join("pretrain", "steps")` is "pretrain.steps"."""
    return f"{path}.{key}" if path else key


# ---- checks that the sections share --------------------------------------------


def need(ok: bool, key: str, sentence: str) -> None:
    """Raise `ConfigError` unless `ok`. NaN never is."""
    if not ok:
        raise ConfigError(key, sentence)


def _every(section: Any, keys: Iterable[str], ok: Callable, rule: str) -> None:
    for key in keys:
        value = getattr(section, key)
        need(ok(value), key, f"{{key}} is {value}; it must be {rule}")


def positive(section: Any, *keys: str) -> None:
    """Each of these values is above 0."""
    _every(section, keys, lambda v: v > 0, "above 0")


def not_negative(section: Any, *keys: str) -> None:
    """Each of these values is 0 or more."""
    _every(section, keys, lambda v: v >= 0, "0 or more")


def fraction(section: Any, *keys: str) -> None:
    """Each of these values lies between 0 and 1."""
    _every(section, keys, lambda v: 0 <= v <= 1, "between 0 and 1")


def shares(section: Any, key: str, names: Iterable[str] | None = None) -> None:
    """This mapping holds shares that sum to 1; with `names`, only these may occur."""
    mapping = getattr(section, key)
    for name, share in mapping.items():
        if names is not None and name not in names:
            raise ConfigError(key, f"{{key}} has no {name!r}; {_nearest(name, names)}")
        need(share >= 0, key, f"{{key}}.{name} is {share}; a share is never negative")
    total = sum(mapping.values())
    need(
        abs(total - 1) < 1e-6,
        key,
        f"the shares in {{key}} sum to {total:.6g}; they must sum to 1",
    )


def _nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {join(prefix, close[0])}?"
    return f"the names here are: {', '.join(names)}"


def _nearest_key(cls: type, key: str, path: str) -> str:
    """A key of `cls` that looks like `key`, or one of that name further down."""
    hints = get_type_hints(cls)
    if not difflib.get_close_matches(key, hints, n=1):
        for name, hint in hints.items():
            if is_dataclass(hint) and key in get_type_hints(hint):
                return f"did you mean {join(path, name)}.{key}?"
    return _nearest(key, hints, path)


# ---- a tree of plain values becomes a dataclass ---------------------------------


def build(cls: type, tree: Any, base: Any = None, path: str = "") -> Any:
    """Make a `cls` from nested dicts; what `tree` leaves out comes from `base`.

    A section is merged with the base's section, every other value replaces the
    base's value whole (a mix of sources too: shares must sum to 1).
    Raises `ConfigError` for an unknown key, a wrong type or an impossible value.
    """
    if not isinstance(tree, dict):
        raise ConfigError(path, f"{{key}} must be a section of keys, not {tree!r}")
    known = {field.name: field for field in fields(cls)}
    hints = get_type_hints(cls)
    for key in tree:
        if key not in known:
            hint = _nearest_key(cls, str(key), path)
            raise ConfigError(join(path, str(key)), f"unknown key {{key}}; {hint}")
    values = {}
    for key, field in known.items():
        at = join(path, key)
        if key in tree:
            old = getattr(base, key, None)
            values[key] = _convert(tree[key], hints[key], old, at)
        elif base is not None:
            values[key] = getattr(base, key)
        elif field.default is MISSING and field.default_factory is MISSING:
            advice = "add it, or begin the file with `extends: course`"
            raise ConfigError(at, f"{{key}} is missing; {advice}")
    try:
        return cls(**values)
    except ConfigError as error:
        raise error.inside(path) from None


def _convert(value: Any, hint: Any, old: Any, at: str) -> Any:
    """`value` as the type `hint` asks for; `old` is the value it replaces."""
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return build(hint, value, old, at)
    if origin in (Union, types.UnionType):  # only `X | None` is used
        inner = next(arg for arg in args if arg is not type(None))
        return None if value is None else _convert(value, inner, old, at)
    if origin is Literal:
        if value not in args:
            hint_text = _nearest(str(value), args)
            raise ConfigError(at, f"{{key}} cannot be {value!r}; {hint_text}")
        return value
    if origin is dict and isinstance(value, dict):
        old = old if isinstance(old, dict) else {}
        new = {
            str(name): _convert(item, args[1], old.get(name), join(at, str(name)))
            for name, item in value.items()
        }
        return {**old, **new} if is_dataclass(args[1]) else new
    if origin is tuple and isinstance(value, list | tuple):
        length = None if args[-1] is Ellipsis else len(args)
        if length in (None, len(value)):
            return tuple(_convert(item, args[0], None, at) for item in value)
    if hint is float and not isinstance(value, bool):
        number = _number(value)
        if number is not None:
            return number
    if hint is int and type(value) is int:
        return value
    if hint in (bool, str) and type(value) is hint:
        return value
    raise ConfigError(at, f"{{key}} must be {_wanted(hint)}, not {value!r}")


def _number(value: Any) -> float | None:
    """YAML reads 1e-5 (without a point) as text; we read it as the number it is."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _wanted(hint: Any) -> str:
    """A type hint in words."""
    args = get_args(hint)
    if get_origin(hint) is tuple:
        count = "" if args[-1] is Ellipsis else f" of {len(args)}"
        return f"a list{count}, each {_wanted(args[0])}"
    if get_origin(hint) is dict:
        return f"names, each with {_wanted(args[1])}"
    words = {int: "a whole number", float: "a finite number", bool: "true or false"}
    return words.get(hint, "text" if hint is str else "a section of keys")


# ---- files ----------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader keeps the last of two equal keys and says nothing: we refuse."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value if isinstance(key.value, str)]
        for name in names:
            if names.count(name) > 1:
                line = node.start_mark.line + 1
                raise ConfigError(name, f"{{key}} is given twice (from line {line} on)")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file. Raises FileNotFoundError or `ConfigError`."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    try:
        # _StrictLoader is a SafeLoader: no Python object is ever constructed.
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except ConfigError as error:
        raise error.in_file(path.name) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or "it is not UTF-8 text"
        raise ConfigError("", f"not valid YAML{where}: {problem}", path.name) from None
    if not isinstance(tree, dict):
        raise ConfigError("", "the file must hold sections of keys", path.name)
    return tree
