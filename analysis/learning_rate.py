"""The command `lora-bench learning_rate`."""

from lora_bench.cli.learning_rate import main

if __name__ == "__main__":
    raise SystemExit(main())
