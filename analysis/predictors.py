"""The command `lora-bench predictors`."""

from lora_bench.cli.predictors import main

if __name__ == "__main__":
    raise SystemExit(main())
