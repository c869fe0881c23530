"""The command `lora-bench next_stage`."""

from lora_bench.cli.next_stage import main

if __name__ == "__main__":
    raise SystemExit(main())
