"""The command line: what `lora-bench` does with a configuration, and a module for each of its commands."""
