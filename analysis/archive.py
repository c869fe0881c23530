"""The command `lora-bench archive`."""

from lora_bench.cli.archive import main

if __name__ == "__main__":
    raise SystemExit(main())
