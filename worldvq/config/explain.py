"""What the keys of a config are: their types, defaults and sentences, as the types themselves say it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pydantic import BaseModel

from worldvq.config.yaml_loading import paths_of, sections_of, suggest
from worldvq.errors import UsageError

TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "multipleOf": "a multiple of",
}
LARGE = 2**53
"""Bounds from here on are those of a machine's integers, and nobody meets them."""


class Key(NamedTuple):
    """One key of a config, or a section.

    Attributes:
        path: As an override writes it, ``tokenizer.quantizer.kind``.
        kind: Its type in words; "" for a section.
        default: As YAML writes it; "" for a section.
        text: What it is.
    """

    path: str
    kind: str
    default: str
    text: str


def keys_of(model: type[BaseModel], prefix: str = "") -> list[Key]:
    """Return all keys of a config, and after them its sections, each before its own keys."""
    keys, below, sections = [], [], sections_of(model)
    defaults, schemas = model().model_dump(mode="json"), model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        path = prefix + name
        if name in sections:
            below += [Key(path, "", "", _line(sections[name].__doc__)), *keys_of(sections[name], f"{path}.")]
        else:
            keys.append(Key(path, _in_words(schemas[name]), _short_yaml(defaults[name]), _line(field.description)))
    return keys + below


def explain(model: type[BaseModel], path: str | None = None) -> list[Key]:
    """Return a key, or a section with its keys, or all there are.

    Raises:
        UsageError: There is no such key; names the nearest.
    """
    if path is not None and path not in paths_of(model):
        raise UsageError(f"no key '{path}'{suggest(model, path)}: `worldvq config explain` lists all")
    return [key for key in keys_of(model) if path is None or key.path == path or key.path.startswith(f"{path}.")]


def _line(text: str | None) -> str:
    return " ".join((text or "").replace("``", "`").split())


def _short_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _in_words(schema: dict[str, Any]) -> str:
    """Say a JSON schema in a few words: "integer, > 0"."""
    if "anyOf" in schema:
        return ", or ".join(_in_words(option) for option in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = schema["type"]
    if kind == "array" and "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {_in_words(schema['prefixItems'][0])}"
    if kind == "array":
        return f"list: {_in_words(schema['items'])}"
    if kind == "object":
        return "keys and values"
    bounds = [f"{sign} {schema[name]}" for name, sign in BOUNDS.items() if schema.get(name, LARGE) < LARGE]
    return ", ".join([TYPES[kind], *bounds])
