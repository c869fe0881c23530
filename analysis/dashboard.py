"""The command `lora-bench dashboard`."""

from lora_bench.cli.dashboard import main

if __name__ == "__main__":
    raise SystemExit(main())
