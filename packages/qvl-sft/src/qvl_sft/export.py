"""Folders that others load: transformers (`hf`), vLLM, llama.cpp (`gguf`).

    qvl-sft export runs/mine --to hf --out merged           # stock transformers, no qvl needed
    qvl-sft export runs/mine --to vllm --out served         # and commands.sh: vllm serve ...
    qvl-sft export runs/mine --to gguf --out for_gguf       # and commands.sh: convert_hf_to_gguf.py ..., llama-quantize

An adapter is folded into its full-precision base; `merge` is the same. The folder holds the processor of the training
(with its picture budget), the base's sampling defaults, and a model card.
"""

import json
import shutil
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from qvl_core.errors import BadInput
from qvl_core.files import new_folder, write_atomic
from qvl_core.qwen3vl.adapter import RECORD_FILE, merge_adapter, record
from qvl_core.qwen3vl.foreign import CONFIG_FILE, TOWER_FILE, WEIGHTS_FILE
from qvl_core.qwen3vl.load import load_model, open_config, open_processor, quiet, stored_precision
from qvl_core.qwen3vl.quantize import Quantized
from qvl_core.qwen3vl.trained import adapter_config, base_of, folder_of, is_adapter, own_processor
from qvl_core.recipe.blocks import Model
from qvl_core.training.engine import DTYPES
from qvl_sft import serving
from qvl_sft.card import card
from qvl_vision.checkpoint import mark_merger_trained

To = Literal["hf", "vllm", "gguf"]

NOT_IN_FOUR_BITS = ["model.visual", "lm_head"]  # a list replaces the library's own, which is the head alone
"""What suffers most: the vision tower with its mergers, and the head."""


def export(
    source: str,
    out: Path,
    to: str = "hf",
    *,
    base: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    keep_adapter: bool = False,
) -> Path:
    """Write what a run, an adapter or a model is to the new folder `out`, whole or not at all, and return it.

    base          what to merge an adapter into, in place of the base that it names
    dtype         type of the weights (bf16, fp16, fp32); default: the base's. A merge is computed in fp32, rounded once
    quantize      nf4: the language model's layers in 4 bits (bitsandbytes), tower and head in `dtype`
    keep_adapter  the adapter as it is, for peft or vLLM's --enable-lora, not merged

    Raises BadInput for what cannot be meant.
    """
    _check(to, dtype, quantize, keep_adapter)
    folder = folder_of(source, "qvl-sft")
    if folder is None:
        raise BadInput("tiny: is no folder; write one with `qvl-sft tiny FOLDER`.")
    adapter = is_adapter(folder)
    if keep_adapter and not adapter:
        raise BadInput(f"{source}: is no adapter (no {CONFIG_FILE}), so there is none to keep.")
    if keep_adapter and (folder / TOWER_FILE).is_file():
        raise BadInput(f"{folder}: its {TOWER_FILE} is not read by peft and vLLM; leave out --keep-adapter.")
    block = base_of(folder, base) if adapter else Model(name=str(folder))
    config = open_config(block.name, block.revision)
    stock = not config.model_type.startswith("qvl_")
    if to != "hf" and not stock:
        raise BadInput(
            f"{source}: has a swapped vision tower, which neither vLLM nor llama.cpp knows; export it --to hf, and "
            "import qvl_vision before it is loaded."
        )
    if to == "vllm" and keep_adapter and (reason := serving.not_as_lora(folder)):
        raise BadInput(f"{folder}: {reason}, which vLLM cannot serve as an adapter; leave out --keep-adapter.")

    with new_folder(out) as aside:
        if keep_adapter:
            processor = own_processor(folder) or open_processor(block)
            for name in (CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, aside / name)
        else:
            processor = _write_model(aside, block, folder if adapter else None, dtype, quantize)
        processor.save_pretrained(aside)
        if stock:
            _add_old_names(processor, aside)
        write_atomic(aside / "README.md", card(out.name, folder, block, adapter=keep_adapter, stock=stock))
        if to != "hf":
            served = block.name if keep_adapter else None
            write_atomic(aside / "commands.sh", serving.commands(to, out.name, folder, config, processor, served))
    print(f"{out}: {_said(to, out, quantize, keep_adapter)}")
    return out


def merge(adapter: Path, out: Path, base: str | None = None, dtype: str | None = None) -> Path:
    """`export` of an adapter to transformers. Raises BadInput if it is none."""
    folder = folder_of(str(adapter), "qvl-sft")
    if folder is None or not is_adapter(folder):
        raise BadInput(f"{adapter}: is no adapter (no {CONFIG_FILE}); a model trained in full needs no merging.")
    return export(str(adapter), out, base=base, dtype=dtype)


def _check(to: str, dtype: str | None, quantize: str | None, keep_adapter: bool) -> None:
    if to not in get_args(To):
        raise BadInput(f"--to {to}: choose one of {', '.join(get_args(To))}.")
    if dtype is not None and dtype not in DTYPES:
        raise BadInput(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}.")
    if quantize not in (None, "nf4"):
        raise BadInput(f"--quantize {quantize}: choose nf4, or leave it out.")
    if keep_adapter and (dtype or quantize or to == "gguf"):
        raise BadInput("--keep-adapter copies an adapter for hf or vllm; leave out --dtype, --quantize and --to gguf.")
    if quantize and to == "gguf":
        raise BadInput("--quantize nf4: llama.cpp cannot read it and quantises by itself; leave it out.")
    if quantize and find_spec("bitsandbytes") is None:
        raise BadInput("--quantize nf4 needs bitsandbytes, which is not installed; run: pip install bitsandbytes")


def _write_model(aside: Path, block: Model, adapter: Path | None, dtype: str | None, quantize: str | None) -> Any:
    """Weights, configuration and sampling defaults of the whole model; returns its processor."""
    stored = stored_precision(block.name, block.revision)
    dtype = dtype or stored
    model, processor = load_model(block, precision=stored if dtype == stored else "fp32", device="cpu")
    if adapter:
        merge_adapter(model, adapter)
        if (held := record(adapter).get("quantized")) is not None:
            print(f"note: the adapter was trained on {Quantized(**held)}; merged, it has to be measured anew.")
        if any(name.endswith("merger") for name in adapter_config(adapter).get("modules_to_save") or ()):
            mark_merger_trained(model)
        processor = own_processor(adapter) or processor
    if model.generation_config.eos_token_id is None:  # a base without generation_config.json would never stop
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
        model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    whole = aside / "whole" if quantize else aside
    with quiet(bars=False):
        model.to(DTYPES[dtype]).save_pretrained(whole)
        if quantize:
            del model
            _write_nf4(whole, aside, dtype)
            shutil.rmtree(whole)
    return processor


def _write_nf4(whole: Path, out: Path, dtype: str) -> None:
    """A model folder in 4 bits, with the `quantization_config` that lets transformers load it as it is."""
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[dtype],
        llm_int8_skip_modules=NOT_IN_FOUR_BITS,
    )
    model = AutoModelForImageTextToText.from_pretrained(
        whole, quantization_config=settings, dtype=DTYPES[dtype], device_map={"": "cpu"}
    )
    model.save_pretrained(out)


def _add_old_names(processor: Any, folder: Path) -> None:
    """What transformers 4, and whatever else was written for it, looks for under other names."""
    processor.image_processor.save_pretrained(folder)  # preprocessor_config.json
    processor.video_processor.save_pretrained(folder)  # video_preprocessor_config.json
    file = folder / "config.json"
    if file.is_file():  # an adapter has none
        config = json.loads(file.read_text(encoding="utf-8"))
        text = config["text_config"]
        rotary = dict(text["rope_parameters"])
        text["rope_theta"], text["rope_scaling"] = rotary.pop("rope_theta"), rotary
        text["tie_word_embeddings"] = config["tie_word_embeddings"]
        write_atomic(file, json.dumps(config, indent=2) + "\n")


def _said(to: str, out: Path, quantize: str | None, keep_adapter: bool) -> str:
    what = "adapter" if keep_adapter else "model in 4 bits (bitsandbytes)" if quantize else "model"
    what = f"{what}, processor and model card"
    if to == "hf":
        return f"{what}; talk to it with `qvl-sft chat {out}`."
    with suppress(OSError):
        print(serving.only_commands((out / "commands.sh").read_text(encoding="utf-8")))
    return f"{what}; commands.sh holds the commands above."
