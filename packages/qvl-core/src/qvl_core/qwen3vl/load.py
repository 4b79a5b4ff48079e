"""From a recipe's `model` block to a Qwen3-VL and its processor, with errors that say what to do.

    model, processor = load_model(recipe.model, precision="bf16", device="cuda", seed=0)
    apply_media(processor, recipe.media)                     # qvl_core.qwen3vl.budgets
    print(summary(model))

Hub names are fetched once as a snapshot folder (safetensors and JSON only, never pickles or code); from there on a hub
model and a local folder are the same thing.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qvl_core.commits import commit_at, note_commit
from qvl_core.errors import BadInput, first_line
from qvl_core.recipe.blocks import Model

if TYPE_CHECKING:
    import torch

NEEDED = {"torch": "2.11", "transformers": "5.23"}
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
SAMPLES = 64  # values of each frozen tensor that the fingerprint looks at
ROWS = 4  # at least so many rows of each stored tensor, and fewer than twice as many, are hashed to know a checkpoint
Precision = Literal["fp32", "bf16", "fp16"]


def load_model(
    model: Model,
    *,
    precision: Precision,
    device: "str | torch.device",
    seed: int = 0,
    configure: Callable[[Any, Any], Any] | None = None,
    low_bit: bool = False,
) -> tuple[Any, Any]:
    """The model in evaluation mode, its weights in `precision`, and its processor.

    configure  makes another configuration of the checkpoint's and its processor, for a method whose architecture has
               the same weights
    low_bit    also open a checkpoint that is stored in 4 bits (bitsandbytes): it can answer, and nothing else

    `tiny` is built from the seed, on the default texts. A model folder in `init_from` gives its weights to the
    architecture of `name`; an adapter folder there is for `lora.load_adapter`, after `apply_tune`. `quantization` is
    done last; a model that is to be tuned is loaded without, since LoRA's first values may look at the weights.
    Raises BadInput for everything a user can put right: versions, names, missing files, other kinds of model. Without
    `configure` these include models that are not autoregressive.
    """
    check_versions()
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if model.name == "tiny":
        from qvl_core.qwen3vl.tiny import tiny_model, tiny_processor

        processor = tiny_processor()
        loaded = tiny_model(processor.tokenizer, seed).to(dtype)
    else:
        folder = find_folder(model.name, model.revision)
        config, processor = _read_config(folder, low_bit), _read_processor(folder)
        if configure is None and sees_both_ways(config):
            raise BadInput(f"{folder}: this model attends both ways and writes by denoising; use qvl-mdlm.")
        config = configure(config, processor) if configure else config
        loaded = _read_weights(_weights_folder(model, folder), config, dtype, device)
        if processor.tokenizer.convert_tokens_to_ids("<|image_pad|>") != loaded.config.image_token_id:
            raise BadInput(f"{folder}: the tokenizer is another model's; copy the one that belongs to the weights.")
    _attend(loaded, model.attention)
    if model.quantization is not None:
        from qvl_core.qwen3vl.quantize import quantize

        quantize(loaded, model.quantization, device)
    return loaded.to(device).eval(), processor


def sees_both_ways(config: Any) -> bool:
    """Whether the language model of a configuration attends to later tokens too: it is not autoregressive."""
    return getattr(config.text_config, "is_causal", True) is False


def open_processor(model: Model) -> Any:
    """The processor that `load_model` would give, without the model. Raises BadInput."""
    if model.name == "tiny":
        from qvl_core.qwen3vl.tiny import tiny_processor

        return tiny_processor()
    folder = find_folder(model.name, model.revision)
    register_architecture(folder / "config.json")
    return _read_processor(folder)


def find_folder(name: str, revision: str | None = None, key: str = "model.name", files: Sequence[str] = FILES) -> Path:
    """The local folder of a checkpoint; a hub name is fetched into the hub's cache, or found there when offline. In a
    run that goes on it is that of the commit it began with (`qvl_core.commits`).

    key    what messages call the place that named it
    files  patterns of what is fetched
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or "\\" in name:
        raise BadInput(
            f"{key}: there is no folder {name}; give a folder, a hub id (Qwen/Qwen3-VL-4B-Instruct), or tiny."
        )

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = commit_at(name, revision)
    place = f"{key}: {name}" + (f" at revision {at}" if at else "")
    try:
        folder = Path(snapshot_download(name, revision=at, allow_patterns=list(files)))
        note_commit(name, revision, folder.name)
        return folder
    except GatedRepoError:
        raise BadInput(f"{place} asks for consent; accept it on huggingface.co and run `hf auth login`.") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise BadInput(f"{place} is neither a folder here nor a model on the hub; check the spelling.") from None
    except RevisionNotFoundError:
        raise BadInput(f"{place}: the hub has no such branch, tag or commit; correct model.revision.") from None
    except LocalEntryNotFoundError:
        raise BadInput(
            f"{place} is no folder here, is not in the local cache, and the hub cannot be reached; connect once, or "
            f"run `hf download {name} --local-dir FOLDER` elsewhere and give the folder as {key}."
        ) from None
    except Exception as error:  # the disk, the hub, or the library that talks to it, whose errors are its own
        raise BadInput(f"{place} cannot be fetched ({first_line(error)}); try again, or give a folder.") from None


def open_config(name: str, revision: str | None = None, key: str = "model.name") -> Any:
    """The configuration of a model: of a released name without its files, of `tiny`, else of its folder.

    Raises BadInput for another kind of model.
    """
    from qvl_core.qwen3vl.presets import config, preset_for

    if (preset := preset_for(name)) is not None and not Path(name).expanduser().is_dir():
        return config(preset)
    if name == "tiny":
        from qvl_core.qwen3vl.tiny import tiny_config, tiny_tokenizer

        return tiny_config(tiny_tokenizer())
    return _read_config(find_folder(name, revision, key))


def stored_precision(name: str, revision: str | None = None) -> Precision:
    """The type that a checkpoint's weights are stored in; fp32 if it does not say, and of `tiny`."""
    if name == "tiny":
        return "fp32"
    dtype = str(_read_config(find_folder(name, revision)).dtype).removeprefix("torch.")
    known: dict[str, Precision] = {"bfloat16": "bf16", "float16": "fp16"}
    return known.get(dtype, "fp32")


def commit_of(name: str, revision: str | None = None, file: str = "config.json") -> str | None:
    """The commit of a hub model that was fetched, with its `file`; None for folders and `tiny`."""
    from huggingface_hub import try_to_load_from_cache

    if name == "tiny" or Path(name).expanduser().is_dir():
        return None
    path = try_to_load_from_cache(name, file, revision=commit_at(name, revision))
    return Path(path).parents[file.count("/")].name if isinstance(path, str) else None


def summary(model: Any) -> str:
    """One line for the terminal: what was loaded, in which type, with which attention, where."""
    from qvl_core.qwen3vl.quantize import size

    parameters = sum(size(parameter) for parameter in model.parameters())
    amount = f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"
    dtype = str(model.dtype).removeprefix("torch.")
    attention = str(model.config._attn_implementation)
    attention = "packed" if "packed" in attention else attention
    quantized = f" ({model.quantized})" if hasattr(model, "quantized") else ""
    return f"{type(model).__name__}, {amount} parameters, {dtype}{quantized}, {attention} attention, on {model.device}"


def fingerprint(model: Any) -> str:
    """SHA-256 that recognises the frozen base: names, shapes, types and evenly spaced values of what is not trained.

    Call it after `apply_tune` (before that, nothing is frozen). Reads 64 values per tensor: no matter at 8B.
    """
    from qvl_core.qwen3vl.quantize import held

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            values = held(parameter).flatten()
            values = values[:: max(1, values.numel() // SAMPLES)].float().cpu()
            head = f"{name.replace('.base_layer', '')} {tuple(parameter.shape)} {parameter.dtype}\n"
            digest.update(head.encode())
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def weights_sha256(folder: Path) -> str:
    """SHA-256 that recognises a checkpoint's weights: names, shapes and a few rows of each tensor, rounded to bf16.

    It does not depend on how they are split into files, nor on the type they are read in. No matter at 8B.
    """
    import torch
    from safetensors import safe_open

    where = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            where.update(dict.fromkeys(file.keys(), path))
    digest = hashlib.sha256()
    with ExitStack() as stack:
        files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in set(where.values())}
        for name in sorted(where):
            part = files[where[name]].get_slice(name)
            shape = part.get_shape()
            digest.update(f"{name} {tuple(shape)}\n".encode())
            step = max(1, shape[0] // ROWS) if shape else 1
            for row in range(0, shape[0] if shape else 0, step):
                values = part[row : row + 1].to(torch.bfloat16).contiguous()
                digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_versions() -> None:
    """BadInput if torch or transformers is missing or older than what QVL is written for."""
    for package, needed in NEEDED.items():
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise BadInput(f"{package} is not installed; run: pip install 'qvl-core[train]'") from None
        if _numbers(found) < _numbers(needed):
            raise BadInput(
                f"{package} {found} is too old: QVL needs {needed} or newer; run: pip install -U '{package}>={needed}'"
            )


def _weights_folder(model: Model, folder: Path) -> Path:
    if model.init_from is None:
        return folder
    start = Path(model.init_from).expanduser()
    if (start / "adapter_config.json").is_file():
        return folder
    if not start.is_dir():
        raise BadInput(f"model.init_from: there is no folder {model.init_from}.")
    return start


def _read_config(folder: Path, low_bit: bool = False) -> Any:
    from transformers import AutoConfig, Qwen3VLConfig, Qwen3VLMoeConfig

    file = folder / "config.json"
    register_architecture(file)
    if not file.is_file():
        raise BadInput(
            f"{folder}: no config.json there, so it is no checkpoint; an adapter needs its base as model.name."
        )
    try:
        with quiet(bars=False):
            config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError):
        config = None
    if not isinstance(config, (Qwen3VLConfig, Qwen3VLMoeConfig)):
        kind = _model_type(file)
        if kind.startswith("qvl_"):
            raise BadInput(f"{file}: model_type {kind!r} has a swapped vision tower; pip install qvl-vision.")
        raise BadInput(f"{file}: model_type {kind!r} is not Qwen3-VL (qwen3_vl, qwen3_vl_moe).")
    if (stored := getattr(config, "quantization_config", None)) is not None:
        _check_stored(file, stored if isinstance(stored, dict) else stored.to_dict(), low_bit)
    return config


def _check_stored(file: Path, stored: dict[str, Any], low_bit: bool) -> None:
    """Raise BadInput for weights that are stored in fewer bits, unless they are bitsandbytes' 4 and `low_bit`."""
    method = stored.get("quant_method")
    if not (low_bit and method == "bitsandbytes" and stored.get("load_in_4bit")):
        raise BadInput(
            f"{file}: the weights are quantised already ({getattr(method, 'value', method)}); name the full-precision "
            "model, and what to hold it in with model.quantization."
        )
    if find_spec("bitsandbytes") is None:
        raise BadInput(f"{file}: the weights are stored in 4 bits; run: pip install 'qvl-core[quant]'")


def register_architecture(file: Path) -> None:
    """Let the installed package that brings a checkpoint's model_type make it known to transformers.

    A package names the module that registers with an entry point of the group `qvl_core.architectures`, called by the
    model_type: qvl-core and the methods load swapped models without importing what is above them.
    """
    if file.is_file():
        for point in entry_points(group="qvl_core.architectures", name=_model_type(file)):
            point.load()


def _read_weights(folder: Path, config: Any, dtype: "torch.dtype", device: "str | torch.device") -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise BadInput(f"{folder}: no weights there (*.safetensors); download them, or save the model as safetensors.")
    low_bit = getattr(config, "quantization_config", None) is not None
    place = {"device_map": {"": device}} if low_bit else {}  # the library's own choice is the first GPU
    try:
        with quiet(bars=sum(path.stat().st_size for path in weights) > 2**30):
            model, info = AutoModelForImageTextToText.from_pretrained(
                folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **place
            )
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{folder}: the weights cannot be read ({first_line(error)}); download them again.") from error
    except RuntimeError as error:
        raise BadInput(
            f"{folder}: the weights' shapes are not those of config.json; copy both from one model."
        ) from error
    if info["missing_keys"]:
        lost = min(info["missing_keys"])
        raise BadInput(f"{folder}: the weights lack {lost}, which config.json asks for; copy both from one model.")
    if extra := sorted(info["unexpected_keys"]):
        logging.getLogger(__name__).warning(
            "%s: %d weights have no place in the model, such as %s", folder, len(extra), extra[0]
        )
    return model


def _read_processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    # Looked for by hand: without them the library hands out an empty tokenizer, or a tokenizer for a processor.
    kinds = {
        "tokenizer": ("tokenizer.json", "vocab.json"),
        "picture settings": ("processor_config.json", "preprocessor_config.json"),
    }
    missing = [
        f"{kind} ({files[0]})" for kind, files in kinds.items() if not any((folder / f).is_file() for f in files)
    ]
    if not missing:
        try:
            processor = AutoProcessor.from_pretrained(folder)
        except Exception as error:  # a damaged tokenizer raises a bare Exception
            raise BadInput(f"{folder}: the processor cannot be read ({first_line(error)}); copy it again.") from error
        if processor.chat_template:
            return processor
        missing = ["chat template (chat_template.jinja)"]
    raise BadInput(
        f"{folder}: no {' and no '.join(missing)} there; copy the base model's processor files beside the weights."
    )


def _attend(model: Any, choice: str) -> None:
    """Set the attention implementation; the choice never reaches a saved config."""
    if choice in ("auto", "packed", "flash"):
        from qvl_core.qwen3vl import attention

        if choice == "flash":
            attention.use_flash()
        attention.use(model)
    else:
        model.set_attn_implementation(choice)


def _model_type(file: Path) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError):
        return ""


@contextmanager
def quiet(bars: bool) -> Iterator[None]:
    """Our sentences instead of the library's load report; progress bars only where there is something to wait for."""
    from transformers.utils import logging as library

    level, shown = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    if not bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if shown:
            library.enable_progress_bar()


def _numbers(version: str) -> tuple[int, ...]:
    """`2.11.0+cu128` as (2, 11): what a version is compared by."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])
