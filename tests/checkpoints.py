"""Runs that are stopped on their way."""


def stop_at(step: int):
    """A listener that ends the process's work in the middle of a step, as Ctrl-C does."""

    def listen(event: dict) -> None:
        if event["event"] == "step" and event["step"] == step:
            raise KeyboardInterrupt

    return listen
