"""Whether the Hub answers, asked once and briefly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

ANSWER_SECONDS = 5.0


@contextlib.contextmanager
def asked_once() -> Iterator[str | None]:
    """Take only what the cache holds where the Hub does not answer; gives the reason then, else None.

    Its clients would ask six times, for half a minute, and tell every time.
    """
    import huggingface_hub
    from datasets import config
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or config.HF_HUB_OFFLINE:
        yield None
        return
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception as error:  # of requests, httpx or the system, as the client's version has it
        reason = f"{constants.ENDPOINT} does not answer ({type(error).__name__}), and the cache does not hold it"
    else:
        yield None
        return
    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before
