"""Write docs/reference/: one page per package with every key of its recipe, from the field descriptions.

`nox -s docs` runs `python -m tools.reference`; a test fails while the committed pages are older than the models.
"""

from importlib import import_module
from pathlib import Path

from qvl_core.recipe.reference import reference

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"


def pages() -> dict[str, str]:
    """The pages by file name: an index, and one for each package with recipes."""
    found = {}
    for path in sorted(ROOT.glob("packages/*/src/*/recipe.py")):
        package = path.parts[-4]
        kind = getattr(import_module(f"{path.parent.name}.recipe"), "RECIPE", None)
        if kind is not None:  # some only have blocks for the recipes of others
            found[f"{package}.md"] = reference(kind).replace("# Recipe reference", f"# Recipes of {package}", 1)
    lines = [f"- [{name.removesuffix('.md')}]({name})" for name in found]
    index = "# Recipe reference\n\nEvery key: type, default and meaning, written from the recipe models themselves.\n\n"
    return {"index.md": index + "\n".join(lines) + "\n"} | found


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.md"):
        old.unlink()
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
