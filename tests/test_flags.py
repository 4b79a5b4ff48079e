"""The pages that answer the flags of other scripts: their recipe keys exist, no flag of the documents is left out."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from qvl_core.recipe.load import load

DOCS = Path(__file__).parents[1] / "docs"
# page -> recipe that its keys change
RECIPES = {"sft": "lora_4b", "mdlm": "lora_2b", "metaquery": "tiny", "edit": "full_2509"}
# What the documents that users come with set.
FLAGS = {
    "sft": """
model_name_or_path tune_mm_llm tune_mm_mlp tune_mm_vision lora_enable lora_r lora_alpha lora_dropout learning_rate
mm_projector_lr vision_tower_lr dataset_use data_packing max_pixels min_pixels video_fps video_max_frames
video_min_frames video_max_pixels video_min_pixels custom_vision_encoder
""",
    "mdlm": """
model_name_or_path freeze_vision freeze_merger lora r lora_alpha lora_dropout target_modules dataset_args
mask_prompt_loss max_seq_length output_dir num_train_epochs per_device_train_batch_size gradient_accumulation_steps
learning_rate warmup_ratio lr_scheduler_type bf16 tf32 gradient_checkpointing
""",
    "metaquery": """
run_name config_file base_dir resume_from_checkpoint file_name output_dir qwen3vl_model checkpoint_path mode prompt
guidance_scale num_images seed input_images image_guidance_scale share nproc-per-node
""",
    "edit": """
output_jsonl_dir embeddings_save_dir model_path batch_size image_sample_size disable_inverse t2i_mode nproc_per_node
nnodes node_rank master_port master_addr mixed_precision use_fsdp fsdp_auto_wrap_policy
fsdp_transformer_layer_cls_to_wrap
fsdp_state_dict_type num_processes num_machines machine_rank main_process_ip main_process_port
pretrained_model_name_or_path train_data_meta_dir train_data_weights train_src_img_num_weights train_batch_size
gradient_accumulation_steps num_train_epochs max_train_steps learning_rate lr_scheduler lr_warmup_steps
checkpointing_steps output_dir gradient_checkpointing adam_weight_decay max_grad_norm uniform_sampling
trainable_modules vae_mini_batch
""",
}
WORDS = {
    "sft": """
r= lora_alpha target_modules modules_to_save load_in_4bit use_gradient_checkpointing use_rslora loftq_config
max_steps optim= seed packing attn_implementation BitsAndBytesConfig train_on_responses_only
bias= task_type bnb_4bit_quant_type bnb_4bit_use_double_quant bnb_4bit_compute_dtype gradient_accumulation_steps
warmup_steps logging_steps output_dir save_steps save_total_limit eval_steps evaluation_strategy remove_unused_columns
per_device_eval_batch_size device_map
""",
    "mdlm": """
accelerate sbatch KoDocumentTableVisualSFT [train:1000,test:100] messages image Memory flash_attention_2
dataloader_num_workers ranks
""",
    "metaquery": """
train_qwen3vl.sh train_qwen3vl.bat train_qwen3vl_slurm.sh torchrun curate_dataset_qwen3vl.py inference_qwen3vl.py
app_qwen3vl.py learning_rate warmup_steps num_metaqueries connector_num_hidden_layers loss_type modules_to_freeze
modules_to_unfreeze "vae" model.mllm_backbone embed_tokens per_device_train_batch_size deepspeed zero1.json zero2.json
zero3.json max_pixels MetaQuery_Instruct_2.4M_512res CC12M find_newest_checkpoint ignore_mismatched_sizes
_gradient_checkpointing torch_dtype caption= guidance_scale= num_inference_steps
""",
    "edit": """
jsonl_path TRANSFORMER_BASED_WRAP QwenImageTransformerBlock SHARDED_STATE_DICT constant_with_warmup "."
""",
}


def rows(page: str) -> list[tuple[str, str]]:
    """The first two cells of each row of a page's tables."""
    lines = (DOCS / page / "flags.md").read_text("utf-8").splitlines()
    cells = [line.split("|") for line in lines if line.startswith("| ")]
    return [
        (row[1].strip(), row[2].strip()) for row in cells if len(row) >= 4 and row[1].strip() not in ("There", "---")
    ]


def overrides(cell: str) -> list[str]:
    """The overrides in the code of a table cell; in brackets, spaces separate nothing."""
    codes = [code for code in re.findall(r"`([^`]+)`", cell) if re.match(r"[a-z_]+(\.\w+)*=", code)]
    return [word.replace('"', "") for code in codes for word in re.split(r" (?=[a-z_]+\.[\w.]+=)", code)]


@pytest.mark.parametrize(("page", "there", "here"), [(page, *row) for page in RECIPES for row in rows(page)])
def test_every_key_exists(page: str, there: str, here: str) -> None:
    given = overrides(here)
    package = f"qvl_{page}"
    load(import_module(f"{package}.recipe").RECIPE, RECIPES[page], given, package)
    assert given or "qvl-" in here or there.startswith(("`--video_min_pixels", '`"train"')), there


@pytest.mark.parametrize("page", RECIPES)
def test_no_flag_is_left_out(page: str) -> None:
    answered = " ".join(there for there, _ in rows(page))
    assert not [flag for flag in FLAGS[page].split() if not re.search(rf"--{flag}\b", answered)]
    assert not [word for word in WORDS[page].split() if word not in answered]
