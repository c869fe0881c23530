"""No network, no shared caches: what the suite needs is in the repository and in the packages that it installs."""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("LORA_BENCH_CACHE", os.path.join(tempfile.gettempdir(), f"lora_bench-tests-{os.getuid()}"))
