"""The command `lora-bench calibration`."""

from lora_bench.cli.calibration import main

if __name__ == "__main__":
    raise SystemExit(main())
