"""Where a run computes: the device, its precision, and the threads of a CPU."""

import ctypes
import functools
import math
import sys
import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from lora_bench.config.errors import ConfigError
from lora_bench.models import machine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
BF16_GAIN = 1.5
"""The gain over fp32's rate at which a CPU computes in bf16: everything but the products gains nothing."""


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        ConfigError: when CUDA is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: no 'cuda' on this machine; use cpu or auto")
    return torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    )


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 where it pays: on CUDA that multiplies it in hardware, and on a CPU that was measured to multiply
    it `BF16_GAIN` times as fast as fp32; else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return faster_precision(cpu_rates())


def faster_precision(rates: Mapping[str, float]) -> str:
    """bf16 where its rate is `BF16_GAIN` times that of fp32, else fp32."""
    return "bf16" if rates["bf16"] >= BF16_GAIN * rates["fp32"] else "fp32"


@functools.cache
def cpu_rates() -> dict[str, float]:
    """FLOP per second of a frozen matrix's product in fp32 and bf16, on one thread of this CPU.

    A CPU's flags do not tell: of two with the same instructions, one multiplies bf16 at half the rate of fp32, the
    other at four times. One thread, since others may be busy, and the best of a few rounds each. It takes a tenth of a
    second; emulated bf16 is detected by a small product.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = _product_rates(n_rows=32, turns=2)
        return _product_rates(n_rows=512, turns=4) if rates["bf16"] > rates["fp32"] / 4 else rates
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def _product_rates(*, n_rows: int, turns: int, width: int = 768) -> dict[str, float]:
    best: dict[str, float] = {}
    for turn in range(turns + 1):
        for precision in ("fp32", "bf16"):
            x, weight = (torch.ones(n, width, dtype=DTYPES[precision]) for n in (n_rows, width))
            start = time.perf_counter()
            F.linear(x, weight)
            seconds = time.perf_counter() - start
            if turn:  # the first product compiles
                best[precision] = min(seconds, best.get(precision, math.inf))
    return {precision: 2 * n_rows * width**2 / seconds for precision, seconds in best.items()}


def set_threads() -> int:
    """Use every core that this process may run on, unless OMP_NUM_THREADS says otherwise. Returns the number of
    threads. Memory that tensors free stays in the process."""
    _keep_freed_memory()
    if machine.threads_asked() is None:
        torch.set_num_threads(machine.cores())
    return torch.get_num_threads()


@functools.cache
def _keep_freed_memory() -> None:
    """Keep freed memory: glibc maps and unmaps a pack's large activations anew each time, which costs a quarter of the
    speed."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
