"""The command `lora-bench weight_types`."""

from lora_bench.cli.weight_types import main

if __name__ == "__main__":
    raise SystemExit(main())
