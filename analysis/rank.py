"""The command `lora-bench rank`."""

from lora_bench.cli.rank import main

if __name__ == "__main__":
    raise SystemExit(main())
