"""The command `lora-bench report`."""

from lora_bench.cli.report import main

if __name__ == "__main__":
    raise SystemExit(main())
