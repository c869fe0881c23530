"""The command `lora-bench spread`."""

from lora_bench.cli.spread import main

if __name__ == "__main__":
    raise SystemExit(main())
