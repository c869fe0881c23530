"""Hydra finds plugins under the namespace `hydra_plugins` only; these two are thin shells over lora_bench."""
