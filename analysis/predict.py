"""The command `lora-bench predict`."""

from lora_bench.cli.predict import main

if __name__ == "__main__":
    raise SystemExit(main())
