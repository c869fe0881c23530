"""The command `lora-bench rescore`."""

from lora_bench.cli.rescore import main

if __name__ == "__main__":
    raise SystemExit(main())
