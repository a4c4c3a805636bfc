"""Reading and writing a recipe's text safely: capped, no aliases, no tags that make objects, no repeated keys."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from ..errors import RecipeError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16

# YAML 1.1 reads `1e-5` as a text; everybody who writes it means the number, as YAML 1.2 does.
_FLOAT = re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses repeated keys and leaves dates as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"Line {key_node.start_mark.line + 1} of the recipe: a key must be a word.")
            if key_node.value in seen:
                raise RecipeError(
                    f"Line {key_node.start_mark.line + 1} of the recipe repeats the key {key_node.value!r}."
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Indents lists below their key, and quotes texts that our loader would read as numbers."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Texts with line breaks or control characters are escaped in double quotes: folded, some would come back as spaces.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith((":timestamp", ":merge", ":value"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _cls in (_Loader, _Dumper):
    _cls.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def read(text: str | bytes) -> Any:
    """The plain data in a YAML text; raises RecipeError with the line where it is malformed."""
    text = _decode(text)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise RecipeError("A recipe cannot use YAML anchors or aliases (& and *); write the values out.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise RecipeError(f"The recipe is nested more than {MAX_DEPTH} levels deep.")
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: makes plain data only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}" if mark else ""
        raise RecipeError(f"The recipe is not valid YAML{where}: {error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeError(f"The recipe is not valid YAML: {first}.") from None


def write(data: Mapping[str, Any]) -> str:
    """YAML in the order of ``data``, lists indented, one line per value."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=2**20)


def read_json(text: str | bytes) -> Any:
    """The plain data in a JSON text; NaN, infinities and repeated keys are refused."""
    text = _decode(text)
    try:
        return json.loads(text, object_pairs_hook=_unrepeated, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise RecipeError(f"The recipe is not valid JSON at line {error.lineno}: {error.msg}.") from None
    except (RecursionError, ValueError) as error:
        raise RecipeError(f"The recipe is not valid JSON: {type(error).__name__}.") from None


def _decode(text: str | bytes) -> str:
    if len(text) > MAX_BYTES:
        raise RecipeError(f"A recipe has at most {MAX_BYTES // 1024} KB; this is no recipe.")
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError("The recipe is not a UTF-8 text.") from None


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [key for key, _ in pairs]
        raise RecipeError(f"The recipe repeats the key {next(key for key in names if names.count(key) > 1)!r}.")
    return out


def _no_constant(name: str) -> Any:
    raise RecipeError(f"The recipe holds {name}, which is not a number to merge with.")
