"""Strict YAML: plain keys and values only, numbers as YAML 1.2 reads them, validated into config types."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from worldvq.errors import CorruptFileError, UsageError, did_you_mean, one_line
from worldvq.files.differences import printable, short
from worldvq.files.reading import read_bounded

C = TypeVar("C", bound=BaseModel)
MAX_YAML = 2**17
"""Bytes of a config; the parser is slow, and a config has a few thousand."""
MAX_DEPTH = 32


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads numbers as YAML 1.2 does; refuses duplicate keys, tags, anchors and aliases.

    Configs do not inherit, so an alias has no use in them, and a few lines of aliases can make a billion values.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        for name in ("anchor", "tag"):
            if isinstance(event, yaml.AliasEvent) or getattr(event, name, None) is not None:
                problem = "anchors, aliases and tags (& * !) are not read here: write the value out"
                raise ComposerError(None, None, problem, event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ComposerError(None, None, f"deeper than {MAX_DEPTH} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_PLAIN = {
    "tag:yaml.org,2002:null": r"~|null|Null|NULL|",
    "tag:yaml.org,2002:bool": r"true|True|TRUE|false|False|FALSE",
    "worldvq:int": r"[-+]?(?:0|[1-9][0-9_]*)",
    "worldvq:float": r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9_]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
}
"""What a word without quotes can be besides text: the core schema of YAML 1.2, without 0o17, 0xf, .inf and .nan."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes what :class:`_Loader` reads."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern in _PLAIN.items():
    for _class in (_Loader, _Dumper):  # a text that would be read as a number is quoted
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), None)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    if len(text) > 30:
        raise ConstructorError(None, None, f"{short(text)} is too large", node.start_mark)
    return int(text)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    value = float(node.value.replace("_", ""))
    if not math.isfinite(value):
        raise ConstructorError(None, None, f"{short(node.value)} is too large", node.start_mark)
    return value


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConstructorError(None, None, "a key is one word", key_node.start_mark)
        key = loader.construct_object(key_node)
        if key in seen:
            raise ConstructorError(None, None, f"the key '{key}' stands twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("worldvq:int", _construct_int)
_Loader.add_constructor("worldvq:float", _construct_float)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text; ``source`` names it in the error.

    Raises:
        UsageError: The text is no valid YAML, a key stands twice, or it holds an anchor, an alias or a tag.
    """
    if len(text) > MAX_YAML:
        raise UsageError(f"{source}: {len(text):,} characters, a config has at most {MAX_YAML:,}")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: {one_line(error)}") from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file as :func:`parse_yaml` does.

    Raises:
        UsageError: The file cannot be read, or as :func:`parse_yaml`; names the file.
    """
    try:
        return parse_yaml(read_bounded(path, MAX_YAML).decode("utf-8"), str(path))
    except CorruptFileError as error:
        raise UsageError(str(error)) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set the value of a ``key.path=value`` text in plain data.

    Raises:
        UsageError: It is no such text, or the path leads through a value.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UsageError(f"override '{override}': write key.path=value, for instance tokenizer.width=64")
    *parents, last = path.split(".")
    node = data
    for key in parents:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise UsageError(f"override '{override}': '{key}' is a value, it has no keys below it")
    node[last] = parse_yaml(text, f"override '{override}'")


def sections_of(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the fields of a config that are sections themselves, with their types."""
    kinds = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def paths_of(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the paths of all keys of a config, sections among them, in order."""
    paths, sections = [], sections_of(model)
    for name in model.model_fields:
        paths += [prefix + name, *(paths_of(sections[name], f"{prefix}{name}.") if name in sections else [])]
    return paths


def suggest(model: type[BaseModel], path: str) -> str:
    """Return a hint at what was meant by a key that a config has not: in its section, or the same key anywhere."""
    *parents, last = path.split(".")
    near = did_you_mean(last, _known_keys(model, tuple(parents)))
    paths = paths_of(model)
    same = [known for known in paths if known.rpartition(".")[2] == last]
    if near and not same:
        return near
    if not same:  # misspelt, and of another section
        name = did_you_mean(last, [known.rpartition(".")[2] for known in paths]).partition("'")[2].partition("'")[0]
        same = [known for known in paths if known.rpartition(".")[2] == name]
    return f" (did you mean {' or '.join(repr(known) for known in same)}?)" if same else ""


def _known_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Names allowed at ``path`` below ``model``, or [] where that is no section."""
    for key in path:
        sections = sections_of(model)
        if str(key) not in sections:
            return []
        model = sections[str(key)]
    return list(model.model_fields)


def _describe(error: ValidationError, model: type[BaseModel], source: str) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown key '{printable(path)}'{suggest(model, path)}"
    message = first["msg"].removeprefix("Value error, ")
    where = f"{printable(path)} = {short(first['input'])}: " if path else ""
    return f"{source}: {where}{message}"


def build(model: type[C], data: Any, source: str) -> C:
    """Validate plain data as a config.

    Raises:
        UsageError: An unknown key (with the nearest known one) or a wrong value, in one line.
    """
    if not isinstance(data, dict):
        raise UsageError(f"{source}: expected keys and values, got {type(data).__name__}")
    try:
        return model.model_validate(data, strict=False)
    except ValidationError as error:
        raise UsageError(_describe(error, model, source)) from None


def dump_yaml(data: dict[str, Any]) -> str:
    """Return plain data (``config.model_dump(mode="json")``) as YAML that :func:`parse_yaml` reads back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)
