"""The command `lora-bench factor`."""

from lora_bench.cli.factor import main

if __name__ == "__main__":
    raise SystemExit(main())
