"""The command `lora-bench pareto`."""

from lora_bench.cli.pareto import main

if __name__ == "__main__":
    raise SystemExit(main())
