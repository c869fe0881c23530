"""The command `lora-bench amplification`."""

from lora_bench.cli.amplification import main

if __name__ == "__main__":
    raise SystemExit(main())
