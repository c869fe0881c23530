"""The command `lora-bench subspace`."""

from lora_bench.cli.subspace import main

if __name__ == "__main__":
    raise SystemExit(main())
