"""From records to estimates, contrasts and verdicts."""
