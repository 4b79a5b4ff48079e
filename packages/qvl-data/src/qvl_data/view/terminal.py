"""One sample on the terminal."""

from qvl_core.errors import BadInput
from qvl_core.printable import printable

from ..dataset import Dataset
from ..errors import BadSample
from ..media import media_name
from ..sample import Part, Region, Sample


def view(dataset: Dataset, number: int) -> None:
    """Print sample `number`, its edit and its turns, and of every picture its size or why it cannot be opened.

    Raises BadInput.
    """
    import typer

    if number >= len(dataset):
        raise BadInput(f"{dataset.file}: sample {number} of {len(dataset)}; the last is {len(dataset) - 1}.")
    sample = dataset[number]
    heading = (sample.id, sample.task, sample.place, sample.meta.dataset)
    typer.secho(printable("  ".join(word for word in heading if word)), bold=True)
    for name, text in _edit(sample):
        typer.secho(f"{name}: ", bold=True, nl=False)
        typer.echo(text)
    for message in sample.messages:
        typer.secho(f"{message.role}: ", bold=True, nl=False)
        for part in message.parts:
            typer.secho(_shown(part, sample), fg="green" if message.trained else None, nl=False)
        typer.echo()


def _edit(sample: Sample) -> list[tuple[str, str]]:
    """The sources, the texts by language, and the target of an edit, each with its name."""
    if (edit := sample.edit) is None:
        return []
    said = list(edit.instruction.items())
    said += [(f"{language}, inverse", text) for language, text in (edit.inverse or {}).items()]
    return [
        *(("source", _media(index, sample)) for index in edit.sources),
        *((name, printable(text, "\n\t")) for name, text in said),
        ("target", _media(edit.target, sample)),
    ]


def _shown(part: Part, sample: Sample) -> str:
    if part.text is not None:
        return printable(part.text, "\n\t")
    if part.media is not None:
        return _media(part.media, sample)
    return ", ".join(_region(sample.regions[index]) for index in part.regions or ())


def _region(region: Region) -> str:
    places = ", ".join(f"{value:g}" for value in region.xy)
    return f"[{region.kind} {printable(region.label)} {places}]" if region.label else f"[{region.kind} {places}]"


def _media(index: int, sample: Sample) -> str:
    media = sample.media[index]
    name = printable(media_name(media))
    if media.video is not None and media.video.frames is not None:
        return f"[video of {len(media.video.frames)} frames]"
    if media.kind == "video":
        return f"[video {name}]"
    try:
        width, height = sample.opener.open(media).size
    except BadSample as error:
        return f"[image {name}: {printable(error.problem)}]"
    return f"[image {name} {width} x {height}]"
