"""One sample on the terminal."""

from qvl_core.errors import BadInput

from ..dataset import Dataset
from ..media import media_name
from ..sample import Part, Sample


def view(dataset: Dataset, number: int) -> None:
    """Print sample `number`, turn by turn; every picture is opened on the way. Raises BadInput."""
    import typer

    if number >= len(dataset):
        raise BadInput(f"{dataset.file}: sample {number} of {len(dataset)}; the last is {len(dataset) - 1}.")
    sample = dataset[number]
    heading = (sample.id, sample.task, sample.place, sample.meta.dataset)
    typer.secho("  ".join(word for word in heading if word), bold=True)
    for message in sample.messages:
        typer.secho(f"{message.role}: ", bold=True, nl=False)
        for part in message.parts:
            typer.secho(_shown(part, sample), fg="green" if message.trained else None, nl=False)
        typer.echo()


def _shown(part: Part, sample: Sample) -> str:
    if part.text is not None:
        return part.text
    if part.media is None:
        return f"[regions {', '.join(map(str, part.regions or ()))}]"
    media = sample.media[part.media]
    name = media_name(media)
    if media.video is not None and media.video.frames is not None:
        return f"[video of {len(media.video.frames)} frames]"
    if media.kind == "video":
        return f"[video {name}]"
    width, height = sample.opener.open(media).size
    return f"[image {name} {width} x {height}]"
