"""Upload of a finished folder to the Hugging Face hub. Nothing is sent anywhere unless --push-to-hub is given."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qvl_core.errors import BadInput, QVLError


def check_push(name: str) -> None:
    """Raise BadInput, before any work is done, for what is no name of a repository, or if nobody is logged in."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise BadInput(f"--push-to-hub {name}: is no name of a repository; write OWNER/NAME.") from None
    if get_token() is None:
        raise BadInput(f"--push-to-hub {name}: nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN.")


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder as the repository `name`, made if need be, and return its address.

    Raises QVLError if the hub refuses or cannot be reached; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _in_one_sentence(folder, name):
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Upload with qvl-sft")
    print(f"{url}: uploaded.")
    return str(url)


@contextmanager
def _in_one_sentence(folder: Path, name: str) -> Iterator[None]:
    from huggingface_hub import errors

    again = f"{folder} is complete, upload it with `hf upload {name} {folder}`"
    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        reason = "your token may not write there" if status in (401, 403) else f"the hub answers {status}"
        raise QVLError(f"--push-to-hub {name}: {reason}; {again}.") from error
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:  # type: ignore[attr-defined]
        raise QVLError(f"--push-to-hub {name}: the hub cannot be reached; {again} when it can.") from error
