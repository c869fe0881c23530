"""One stream of random numbers for each purpose, all derived from the run's seed.

    stream seed = first 63 bits of sha256("lora_bench/<purpose>/<key>/<key> ...")

A stream never depends on how much was drawn from another, so two cells of one seed share head, data order and dropout
masks whatever else differs between them, and their contrast is paired.
"""

import hashlib

import numpy as np
import torch


def derive(purpose: str, *keys: object) -> int:
    """A seed for one purpose, e.g. `derive("order", seed, epoch)`; the same on every platform."""
    text = "/".join(["lora_bench", purpose, *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(purpose: str, *keys: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator that starts at `derive(purpose, *keys)`."""
    return torch.Generator(device=device).manual_seed(derive(purpose, *keys))


def permutation(n: int, purpose: str, *keys: object) -> np.ndarray:
    """A permutation of n rows, drawn from its own stream."""
    return np.random.Generator(np.random.PCG64(derive(purpose, *keys))).permutation(n)
