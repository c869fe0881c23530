"""Train runs: from a configuration to a record."""
