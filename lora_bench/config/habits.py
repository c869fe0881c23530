"""What people bring from other tools, and how it is spelled here: keys, and the modules that peft names.

One spelling is one cell: what is spelled in another way is refused with the spelling that works, never read in silence.
"""

from __future__ import annotations

import re

ROLE_LETTERS = "qkvo"

PEFT = {
    **dict.fromkeys(("r", "lora_r", "lora_rank"), "adapter.rank"),
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    **dict.fromkeys(("target_modules", "lora_target_modules", "lora_target"), "adapter.targets"),
    "layers_to_transform": "adapter.layers",
    **dict.fromkeys(("init_lora_weights", "peft_init_lora_weights"), "adapter.init"),
    **dict.fromkeys(("use_rslora", "peft_use_rslora"), "adapter=rslora"),
    **dict.fromkeys(("use_dora", "peft_use_dora"), "adapter=dora"),
    **dict.fromkeys(("peft_type", "peft_method"), "adapter=METHOD"),
    **dict.fromkeys(("loraplus_lr_ratio", "lora_plus_lr_ratio"), "adapter=lora_plus adapter.b_lr_ratio"),
    **dict.fromkeys(("base_model_name_or_path", "base_model"), "model.name"),
}
TRANSFORMERS = {
    "learning_rate": "train.lr",
    **dict.fromkeys(("num_train_epochs", "num_epochs", "n_epochs", "max_epochs"), "train.epochs"),
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_gpu_train_batch_size", "train_batch_size"),
        "train.batch_size",
    ),
    "gradient_accumulation_steps": "train.grad_accumulation",
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), "train.schedule"),
    "warmup_steps": "train.warmup_ratio (a fraction of all steps)",
    **dict.fromkeys(("max_seq_length", "max_sequence_length", "model_max_length", "cutoff_len"), "train.max_length"),
    **dict.fromkeys(("bf16", "fp16", "torch_dtype", "dtype"), "train.precision"),
    "gradient_checkpointing": "train.checkpoint",
    "torch_compile": "train.compile",
    **dict.fromkeys(("output_dir", "save_dir", "log_dir"), "store"),
    **dict.fromkeys(("model_name_or_path", "model_name", "model_id", "pretrained_model_name_or_path"), "model.name"),
    "model_revision": "model.revision",
    "gguf_file": "model.gguf",
    **dict.fromkeys(("task_name", "dataset_name", "dataset"), "task"),
    **dict.fromkeys(("validation_file", "eval_file", "dev_file"), "task.select_file"),
    "test_file": "task.report_file",
    "max_train_samples": "task.train_rows",
    "max_eval_samples": "task.select_rows",
    **dict.fromkeys(("random_seed", "data_seed"), "seed"),
    "report_to": "tracking",
}
SEVERAL = {
    "seeds": "seed; several are a sweep: -m seed=0,1 or -m 'seed=range(8)'",
    "ranks": "adapter.rank; several are a sweep: -m adapter.rank=4,8",
    **dict.fromkeys(("lrs", "learning_rates"), "train.lr; several are a sweep: -m train.lr=1e-4,1e-3"),
}
"""Keys that nobody has in this number: the plural of one of ours."""
COMMANDS = {
    **dict.fromkeys(("run", "train", "finetune", "fit"), "a run needs none: lora-bench task=cola adapter.rank=4"),
    **dict.fromkeys(("sweep", "sweeps", "grid", "multirun"), "a sweep needs none: lora-bench +sweeps=NAME"),
    **dict.fromkeys(
        ("eval", "evaluate", "test", "predict"), "a run scores itself; lora-bench show store has the scores"
    ),
    **dict.fromkeys(("list", "ls", "status"), "lora-bench show store"),
    **dict.fromkeys(("login", "init"), "none is needed here; W&B's own is `wandb login`"),
}
"""First words of other tools, and what does it here."""
AXOLOTL = {
    "micro_batch_size": "train.batch_size",
    "sequence_len": "train.max_length",
    "lora_target_linear": "adapter.targets=all",
    "wandb_project": "tracking.project",
    "wandb_entity": "tracking.entity",
}

MODULES = {
    "q": ("q_proj", "query", "query_proj", "q_lin", "to_q", "q_linear"),
    "k": ("k_proj", "key", "key_proj", "k_lin", "to_k", "k_linear"),
    "v": ("v_proj", "value", "value_proj", "v_lin", "to_v", "v_linear"),
    "o": ("o_proj", "out_proj", "out_lin", "attn_out", "to_out"),
    "qkv": ("query_key_value", "qkv_proj", "c_attn", "in_proj", "wqkv", "qkv_lin"),
    "up": ("up_proj", "fc1", "lin1", "c_fc", "dense_h_to_4h", "wi", "fc_in"),
    "gate": ("gate_proj",),
    "gate+up": ("gate_up_proj",),
    "down": ("down_proj", "fc2", "lin2", "dense_4h_to_h", "fc_out"),
    "all": ("all-linear", "all_linear"),
    "attention": ("attn", "self_attn", "self_attention"),
}
"""Names of modules that mean the same role on every architecture that has them; `dense`, `c_proj` and `Wo` do not."""

_ROLE_OF = {name: role for role, names in MODULES.items() for name in names}


def key_here(full: str) -> str | None:
    """What a key of another tool is called here, as the end of a message; None where it is none of theirs."""
    name = full.rpartition(".")[2].replace("-", "_").lower()
    for whose, keys in {"peft's": PEFT, "transformers'": TRANSFORMERS, "axolotl's": AXOLOTL}.items():
        if name in keys:
            return f"{whose} {name} is {keys[name]} here"
    return f"it is {SEVERAL[name]}" if name in SEVERAL else None


def targets_here(text: str) -> str | None:
    """Targets as peft, the paper or a list name them, in the spelling of `adapter.targets`; None where unclear.

    `QV`, `WqWv`, `q_proj,v_proj` and `['query', 'value']` are all `qv`.
    """
    parts = [part for part in re.split(r"[\s,;+/]+", text.strip("[]() ").replace("'", "").replace('"', "")) if part]
    spelled: list[str] = []
    for part in parts:
        name = part.rpartition(".")[2].lower()
        if name in _ROLE_OF:
            spelled += _ROLE_OF[name].split("+")
        elif re.fullmatch(rf"(w_?[{ROLE_LETTERS}])+", name):
            spelled.append(re.sub(r"w_?", "", name))
        elif re.fullmatch(rf"[{ROLE_LETTERS}]+", name) or name in ("up", "gate", "down", "attention", "mlp", "all"):
            spelled.append(name)
        else:
            return None
    letters = "".join(part for part in spelled if set(part) <= set(ROLE_LETTERS))
    words = [part for part in spelled if not set(part) <= set(ROLE_LETTERS)]
    roles = [*letters, *words]
    return "+".join([*([letters] if letters else []), *words]) if roles and len(set(roles)) == len(roles) else None
