"""`qvl-data registry`: names for data sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from qvl_core.cli import Argument, Option
from qvl_core.errors import BadInput

from .app import AllowRoot, Columns, FromFormat, MediaRoot, RegistryFile, app, columns_of

if TYPE_CHECKING:
    from qvl_data.registry import Registered

registry = app.group("registry", help="Names for data sets, for recipes and commands.")

Name = Annotated[str, Argument(help="Name of a data set.")]


@registry.command("list")
def list_(registry: RegistryFile = None) -> None:
    """List all names: those of the registry file, and those that installed packages bring."""
    from rich import print as show
    from rich.table import Table
    from rich.text import Text

    from qvl_data.registry import Registry

    table = Table()
    for title in ("name", "path", "format", "licence", "from"):
        table.add_column(title, overflow="fold")
    names = Registry(registry)
    if not names:
        raise BadInput("no data set is registered; write datasets.yaml, or: qvl-data registry add NAME PATH.")
    for name, found in names.items():
        paths = ", ".join(map(str, found.paths.values()))
        cells = (name, paths, found.entry.format or "", found.entry.license or "", found.place)
        table.add_row(*map(Text, cells))
    show(table)


@registry.command()
def show(name: Name, registry: RegistryFile = None) -> None:
    """Show one entry, and what it holds."""
    import yaml

    found = _find(name, registry)
    fields = found.entry.model_dump(mode="json", exclude_defaults=True)
    print(yaml.safe_dump({name: fields}, sort_keys=False, allow_unicode=True), end="")
    print(f"# {found.place}")
    for line in _opened(found):
        print(f"# {line}")


@registry.command()
def add(
    name: Name,
    path: Annotated[Path, Argument(help="File, or data set folder.")],
    split: Annotated[str | None, Option(help="Split of the folder that the name stands for.")] = None,
    from_format: FromFormat = None,
    map: Columns = None,
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
    license: Annotated[str | None, Option(help="Licence of the data.")] = None,
    registry: RegistryFile = None,
) -> None:
    """Add an entry to the registry file (made if it is not there), if the data can be opened."""
    from qvl_data.register import add as write
    from qvl_data.register import relative_to
    from qvl_data.registry import Entry, Registered

    file = _file(registry)
    entry = Entry(
        path=relative_to(path, file.parent),
        split=split,
        format=from_format,
        map=columns_of(map),
        media_root=relative_to(media_root, file.parent) if media_root else None,
        allow_root=tuple(relative_to(root, file.parent) for root in allow_root or ()),
        license=license,
    )
    lines = _opened(Registered(name, entry, file.parent, str(file)))
    write(file, {name: entry})
    print(f"{file}: {name}: {'; '.join(lines)}")


@registry.command()
def check(registry: RegistryFile = None) -> int:
    """Open every registered data set and read its first sample; exit code 2 if one cannot be read."""
    from qvl_data.registry import Registry

    broken = 0
    for name, found in Registry(registry).items():
        try:
            print(f"{name}: {'; '.join(_opened(found))}")
        except BadInput as error:
            broken += 1
            print(f"{name}: WRONG: {error}")
    return 2 if broken else 0


@registry.command("import")
def import_(
    source: Annotated[Path, Argument(metavar="FILE.py", help="Python file with a data_dict; it is read, not run.")],
    registry: RegistryFile = None,
) -> None:
    """Take over the data_dict of Qwen's finetuning code (annotation_path, data_path)."""
    from qvl_data.register import add as write
    from qvl_data.register import read_data_dict

    file = _file(registry)
    entries = read_data_dict(source, file.parent)
    write(file, entries)
    print(f"{file}: added {', '.join(entries)}; see `qvl-data registry check`.")


def _file(registry: Path | None) -> Path:
    """The registry file in use, or the one to make."""
    from qvl_data.registry import FILE, find

    if registry is not None and not registry.exists():
        return registry
    return find(registry) or Path(FILE)


def _find(name: str, registry: Path | None) -> "Registered":
    from qvl_data.registry import Registry

    names = Registry(registry)
    if name not in names:
        close = names.close(name)
        hint = f'did you mean "{close}"?' if close else f"registered are {', '.join(names) or 'none'}."
        raise BadInput(f'no data set is registered as "{name}"; {hint}')
    return names[name]


def _opened(found: "Registered") -> list[str]:
    """A line for each split, after its first sample was read. Raises BadInput."""
    lines = []
    for name in found.split_names or [None]:
        dataset = found.open(name)
        lines.append(f"{dataset.file}: {len(dataset)} samples ({dataset[0].meta.format or 'qvl'})")
    return lines
