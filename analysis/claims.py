"""The command `lora-bench claims`."""

from lora_bench.cli.claims import main

if __name__ == "__main__":
    raise SystemExit(main())
