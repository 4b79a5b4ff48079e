"""YAML text as a tree in which every value knows the place it was written at.

Nothing is constructed and nothing is executed: PyYAML only scans the text, and what a scalar means is decided
later, from the type of the field it is given to.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import yaml

from qvl_core.errors import BadInput


class Place(NamedTuple):
    """Where something is written: a line of a file, a whole file, or an override on the command line."""

    name: str
    line: int | None = None

    def __str__(self) -> str:
        return self.name if self.line is None else f"{self.name}:{self.line}"


@dataclass(frozen=True)
class Scalar:
    """A single value as it was written; plain means without quotes."""

    text: str
    plain: bool


Content: TypeAlias = "dict[str, Node] | list[Node] | Scalar"


@dataclass
class Node:
    """A value and its place (inside a block: the place of its key)."""

    place: Place
    content: Content


class Problem(NamedTuple):
    """One thing that is wrong, as a sentence without its place."""

    place: Place
    sentence: str

    def __str__(self) -> str:
        return f"{self.place}: {self.sentence}"


class _Composer(yaml.SafeLoader):
    """PyYAML's composer without anchors, aliases and tags: a recipe says what it means where it means it."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        if event.anchor is not None:
            raise _Refused("anchors and aliases (& and *) have no place in a recipe; write the value out", event)
        if event.tag is not None:
            raise _Refused(f"the tag {event.tag} has no place in a recipe; write the plain value", event)
        return super().compose_node(parent, index)


class _Refused(yaml.MarkedYAMLError):
    """YAML that a recipe does without."""

    def __init__(self, sentence: str, event: Any) -> None:
        super().__init__(problem=sentence, problem_mark=event.start_mark)


def parse(text: str, where: str, *, numbered: bool = True) -> tuple[Node | None, list[Problem]]:
    """The tree of one YAML document (None when it is empty) and its duplicate keys.

    where names the text in messages; numbered adds the line. Raises BadInput for text that is not YAML.
    """
    try:
        root = yaml.compose(text, Loader=_Composer)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = Place(where, mark.line + 1 if mark and numbered else None)
        raise BadInput(f"{place}: {_syntax(error)}") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise BadInput(f"{where}: not YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise BadInput(f"{where}: nested too deeply to be a recipe.") from None
    if root is None:
        return None, []
    problems: list[Problem] = []

    def build(node: yaml.Node, place: Place) -> Node:
        if isinstance(node, yaml.ScalarNode):
            return Node(place, Scalar(node.value, plain=node.style is None))
        if isinstance(node, yaml.SequenceNode):
            return Node(place, [build(item, at(item)) for item in node.value])
        block: dict[str, Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problems.append(Problem(at(key), "a key must be a single word"))
            elif key.value in block:
                first = block[key.value].place
                before = f" (first on line {first.line})" if first.line else ""
                problems.append(Problem(at(key), f'duplicate key "{key.value}"{before}; keep one'))
            else:
                block[key.value] = build(value, at(key))
        return Node(place, block)

    def at(node: yaml.Node) -> Place:
        return Place(where, node.start_mark.line + 1 if numbered else None)

    return build(root, at(root)), problems


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "cannot be read"
    if isinstance(error, _Refused):
        return f"{problem}."
    if "\\t" in problem:
        return "not YAML: there is a tab; indent with spaces."
    if "expected a single document" in str(error):
        return "a recipe is one YAML document; remove the second one."
    return f"not YAML: {problem}."


def override(root: Node, text: str) -> Iterator[Problem]:
    """Set `a.b.0.c=value` in the tree, creating blocks that are missing; yields what is wrong with it."""
    place = Place(text)
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        yield Problem(place, "an override is written key=value, such as optim.lr=1e-4")
        return
    try:
        new, problems = parse(value, text, numbered=False)
    except BadInput as error:
        yield Problem(place, str(error).removeprefix(f"{text}: ").removesuffix("."))
        return
    yield from problems
    new = new or Node(place, Scalar("", plain=True))

    node = root
    for depth, key in enumerate(keys):
        here, last = ".".join(keys[:depth]), depth == len(keys) - 1
        content = node.content
        if key == "0" and not isinstance(content, list) and not (isinstance(content, dict) and key in content):
            content = node.content = [Node(node.place, content)]  # a lone entry stands for a list of one
            node.place = place
        if isinstance(content, dict):
            if last:
                content[key] = new
            elif key not in content or _empty(content[key]):
                if keys[depth + 1].isdigit():
                    missing = ".".join(keys[: depth + 1])
                    yield Problem(place, f'"{missing}" is not set, so it has no entry to change; give the whole list')
                    return
                content[key] = Node(place, {})
            node = content[key]
        elif isinstance(content, list):
            if not key.isdigit() or int(key) >= len(content):
                known = f"0 to {len(content) - 1}" if content else "none: it is empty"
                yield Problem(place, f'"{here}" has no entry {key}; its entries are {known}')
                return
            if last:
                content[int(key)] = new
            node = content[int(key)]
        else:
            yield Problem(
                place, f'"{here}" is a single value ({node.place}), so "{key}" cannot be set in it; set "{here}" whole'
            )
            return


def _empty(node: Node) -> bool:
    return isinstance(node.content, Scalar) and node.content.plain and node.content.text == ""
