"""Hydra finds plugins under the namespace `hydra_plugins` only: the sweeper, which expands and composes a sweep's
grids, and the search path. What a sweep then does is lora_bench's."""
