"""How long the suite waits for what must come: longer than any machine takes, so that only what hangs is ended."""

PATIENCE_SECONDS = 900.0
