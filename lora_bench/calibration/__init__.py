"""Can the verdicts be trusted? The instrument's own test."""
