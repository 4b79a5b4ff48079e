"""From a YAML recipe and overrides to a validated recipe, and back.

    recipe = load(RECIPE, "lora_4b", ["optim.lr=1e-4", "data.train.0.weight=2"], package="qvl_sft")

Everything that is wrong is reported at once, one line each: the place, what is wrong, and what was probably meant.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from qvl_core.errors import BadInput
from qvl_core.recipe import sentences, shipped
from qvl_core.recipe.blocks import Source
from qvl_core.recipe.nodes import Node, Place, Problem, Scalar, override, parse
from qvl_core.recipe.sources import parse_sources
from qvl_core.recipe.typed import FLOAT, alternatives, inside, resolve, scalar, value

R = TypeVar("R", bound=BaseModel)


def load(kind: type[R], source: str | Path, overrides: Sequence[str] = (), package: str | None = None) -> R:
    """The recipe in `source`, a YAML file or the name of one that `package` ships, changed by `overrides`.

    An override is `dotted.key=value`, the value written as in YAML; numbers in the key count the entries of a list.
    Raises BadInput that names every mistake with its line or its override.
    """
    text, where = _read(source, package)
    root, found = parse(text, where)
    if root is None:
        raise BadInput(f"{where}: the recipe is empty.")
    if not isinstance(root.content, dict):
        raise BadInput(f"{where}: a recipe is a block of `key: value` lines, not a {_noun(root)}.")
    found += _spread(root, [kind])
    for change in overrides:
        found += override(root, change)
        found += _spread(root, [kind])
    root.place = Place(where)  # what is missing at the top has no line

    recipe = None
    try:
        # Strict, because the types are right already: neither "yes" for true nor true for 1 may pass.
        recipe = kind.model_validate(value(root, [kind]), strict=True)
    except ValidationError as error:
        found += sentences.problems(error, kind, root)
    if found or recipe is None:
        raise BadInput("\n".join(dict.fromkeys(f"{problem}{_stop(problem)}" for problem in _in_order(found))))
    return recipe


def dump(recipe: BaseModel) -> str:
    """The resolved recipe as YAML: `load` makes an equal recipe of it."""
    plain = recipe.model_dump(mode="json")
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def name(source: str | Path) -> str:
    """The recipe's own name, after which its run folder is called."""
    return Path(source).stem if str(source).endswith((".yaml", ".yml")) else Path(source).name


def _read(source: str | Path, package: str | None) -> tuple[str, str]:
    """Text of the recipe and the name it has in messages."""
    path, given = Path(source), str(source)
    own = path.is_file()  # comes before a shipped recipe of the same name
    if package is not None and not own and path.name == given and (found := shipped.find(package, given)):
        return found.text, found.place
    if path.is_dir():
        raise BadInput(f"{given}: this is a folder; give the YAML file in it.")
    try:
        return path.read_text(encoding="utf-8-sig"), given
    except FileNotFoundError:
        if package is None:
            raise BadInput(f"{given}: there is no such file.") from None
        if path.suffix in (".yaml", ".yml") or path.name != given:
            raise BadInput(f"{given}: there is no such file, and {shipped.unknown(package, path.stem)}") from None
        raise BadInput(shipped.unknown(package, given)) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{given}: not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{given}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _spread(node: Node, kinds: list[Any], path: str = "") -> Iterator[Problem]:
    """Put blocks where text names data sources, so that an override can change one key of a source."""
    if isinstance(node.content, dict):
        for key, child in node.content.items():
            yield from _spread(child, inside(kinds, key), f"{path}.{key}" if path else key)
    elif any(get_origin(kind) is list and Source in alternatives(get_args(kind)[0]) for kind in kinds):
        if isinstance(node.content, list):
            entries = [(f"{path}.{number}", entry) for number, entry in enumerate(node.content)]
        elif _empty(node):
            return
        else:
            entries = [(path, Node(node.place, node.content))]
        node.content = []
        for name, entry in entries:
            if isinstance(entry.content, Scalar) and not _empty(entry):
                try:
                    node.content += [_block(entry.place, fields) for fields in parse_sources(entry.content.text)]
                except BadInput as error:
                    yield Problem(entry.place, f'"{name}": {error}')
            else:
                node.content.append(entry)


def _empty(node: Node) -> bool:
    return isinstance(node.content, Scalar) and scalar(node.content, [str]) is None


def _block(place: Place, value: Any) -> Node:
    if isinstance(value, dict):
        return Node(place, {key: _block(place, entry) for key, entry in value.items()})
    return Node(place, Scalar(str(value), plain=not isinstance(value, str)))


def _noun(root: Node) -> str:
    return "single value" if isinstance(root.content, Scalar) else "list"


def _in_order(found: list[Problem]) -> list[Problem]:
    """As the file reads, overrides last."""
    return sorted(found, key=lambda problem: (problem.place.line is None, problem.place.line or 0))


def _stop(problem: Problem) -> str:
    return "" if problem.sentence.endswith(("?", ".")) else "."


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would be read as something else."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "'" if not isinstance(resolve(text), str) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _number(dumper: _Dumper, number: float) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(number))


_Dumper.add_representer(str, _text)
_Dumper.add_representer(float, _number)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))  # 1e-08 needs no tag
