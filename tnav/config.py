"""Recipes: YAML checked by pydantic; all errors in one pass, with file, line and field."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tnav.errors import ConfigError

_ROOT = Path(__file__).resolve().parent.parent


class Recipe(BaseModel):
    """Base of every recipe: an unknown key is an error, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


RecipeT = TypeVar("RecipeT", bound=Recipe)


def datasets_dir() -> Path:
    """Folder of manifest, tiles and scenarios: ``TNAV_DATASETS``, or the one beside the package."""
    return Path(os.environ.get("TNAV_DATASETS", _ROOT / "datasets"))


def find_recipe(name_or_path: str, folder: str, what: str) -> Path:
    """A recipe by its name in a folder of the datasets, or by path.

    Raises:
        ConfigError: no recipe of that name; those that are there are named.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return path
    path = datasets_dir() / folder / f"{name_or_path}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ConfigError(f"{what} '{name_or_path}': not found; known: {known}; or give a path")
    return path


def load_recipe(path: Path, model: type[RecipeT]) -> RecipeT:
    """Read a YAML recipe.

    Args:
        path: the file.
        model: what it must hold.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or does not fit; one line an error.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}); expected a YAML recipe") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2025-13-45
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}:{line}: not valid YAML: {problem}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: found {type(data).__name__}, expected a mapping of keys")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_explain(path, node, model, detail) for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def _explain(path: Path, root: yaml.Node | None, model: type[BaseModel], detail: Any) -> str:
    location = tuple(detail["loc"])
    field = ".".join(str(part) for part in location) or "recipe"
    line = _line_of(root, location)
    if detail["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"
        return f"{path}:{line}: {field}: unknown key ({hint})"
    # of a check of the whole recipe, all of it would be "found"
    silent = detail["type"] == "missing" or isinstance(detail["input"], dict)
    found = "" if silent else f", found {detail['input']!r}"
    return f"{path}:{line}: {field}: {_uncapitalised(detail['msg'])}{found}"


def _uncapitalised(message: str) -> str:
    """The first letter of pydantic's sentence; names further on keep theirs."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _line_of(node: yaml.Node | None, location: Sequence[str | int]) -> int:
    """Line of the deepest node on the way to a location (1-based)."""
    line = 1 if node is None else node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pair = next((p for p in node.value if p[0].value == str(part)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                return line
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _known_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    current: Any = model
    for part in location:
        if isinstance(current, list):  # a union: its members are told apart by their tag
            current = next((m for m in current if repr(part) in str(m.model_fields)), None)
            continue
        field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        if field is None:
            return []
        current = field.annotation
        current = current if isinstance(current, type) else _members(current)
    return list(current.model_fields) if hasattr(current, "model_fields") else []


def _members(annotation: Any) -> list[Any]:
    """Models of a union."""
    return [m for m in get_args(annotation) if hasattr(m, "model_fields")]
