"""The recipes that a package carries in its folder `recipes/`."""

from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from qvl_core.errors import BadInput
from qvl_core.recipe.names import close


@dataclass(frozen=True)
class Shipped:
    """A recipe inside a package; `place` is how messages name it."""

    name: str
    place: str
    text: str

    @property
    def description(self) -> str:
        """The first sentence of the header comment."""
        first = self.text.lstrip("\ufeff").split("\n", 1)[0]
        return first.lstrip("# ").strip() if first.startswith("#") else ""


def shipped(package: str) -> list[Shipped]:
    """All recipes of a package, by name."""
    return [
        Shipped(entry.name.removesuffix(".yaml"), f"{package}/recipes/{entry.name}", entry.read_text(encoding="utf-8"))
        for entry in sorted(_entries(package), key=lambda entry: entry.name)
    ]


def find(package: str, name: str) -> Shipped | None:
    """The recipe called `name` (with or without .yaml), or None."""
    wanted = name.removesuffix(".yaml")
    return next((recipe for recipe in shipped(package) if recipe.name == wanted), None)


def show(package: str, name: str) -> str:
    """The text of a recipe, comments included."""
    return _known(package, name).text


def copy(package: str, name: str, to: Path | None = None) -> Path:
    """Write a recipe into a file or folder (default: `<name>.yaml` here) to be edited; never over another file."""
    recipe = _known(package, name)
    target = to or Path(f"{recipe.name}.yaml")
    if target.is_dir():
        target = target / f"{recipe.name}.yaml"
    if target.exists():
        raise BadInput(f"{target}: exists already; give another name.")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(recipe.text, encoding="utf-8", newline="\n")
    return target


def _known(package: str, name: str) -> Shipped:
    recipe = find(package, name)
    if recipe is None:
        raise BadInput(unknown(package, name))
    return recipe


def unknown(package: str, name: str) -> str:
    """The sentence about a name that no recipe has."""
    names = [recipe.name for recipe in shipped(package)]
    return f'no recipe "{name}"' + (close(name, names) or f"; {package} ships {', '.join(names) or 'none'}.")


def _entries(package: str) -> list[Traversable]:
    folder = files(package) / "recipes"
    if not folder.is_dir():
        return []
    return [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
