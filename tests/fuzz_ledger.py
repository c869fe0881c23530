"""What became of each mutation, counted; the suite stops at the first that is wrong, a long hunt lists all of them."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase

N_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Mutations of a long hunt, over all tests; 0 for the suite's own."""


class Ledger:
    """Counts of refused and accepted mutations, and those that are wrong by what is wrong with them.

    Attributes:
        wrong: where and how -> the first mutations of this kind.
    """

    def __init__(self, name: str):
        self.name, self.n_examples = name, 0
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.guards: Counter[str] = Counter()
        self.wrong: dict[str, list[str]] = {}

    def settings(self, *, n_suite: int, share: int) -> dict[str, Any]:
        """hypothesis' settings: `n_suite` examples, the same each time, or one in `share` of a long hunt's, all new."""
        values: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
        if N_EXAMPLES:
            return values | {"max_examples": N_EXAMPLES // share, "derandomize": False, "phases": [Phase.generate]}
        return values | {"max_examples": n_suite, "derandomize": True}

    @contextlib.contextmanager
    def example(self, what: str) -> Iterator[Ledger]:
        """One mutation. What it raises is wrong: told at the end of a long hunt, at once in the suite."""
        self.n_examples += 1
        if N_EXAMPLES and self.n_examples % 1000 == 0:
            print(f"{self.name}: {self.n_examples} mutations, {dict(self.counts)}", flush=True)
        try:
            yield self
        except Exception as error:
            if not N_EXAMPLES:
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            kind = "wrong" if isinstance(error, AssertionError) else "traceback"
            self.counts[kind] += 1
            says = (str(error).splitlines() or [""])[0][:150]
            place = f"{kind} {type(error).__name__} in {frame.name}: {says}"
            examples = self.wrong.setdefault(place, [])
            if len(examples) < 3:
                examples.append(what)
                print(f"{place}\n    {what}", flush=True)

    def refused(self, message: str) -> None:
        """A refusal is one line that begins with a key."""
        self.counts["refused"] += 1
        key, _, reason = message.partition(": ")
        assert "\n" not in message, f"several lines: {message!r}"
        assert reason and key.replace(".", "").replace("_", "").isalpha(), f"no key: {message!r}"
        assert "Traceback" not in message, message
        self.refusals[" ".join(reason.split()[:6])] += 1

    def guarded(self, message: str) -> None:
        """A run that a guard failed: its words are told at the end, for planning may have been able to tell."""
        self.counts["guarded"] += 1
        self.guards[message] += 1

    def accepted(self) -> None:
        self.counts["accepted"] += 1

    def play(self, test: Callable[[], None], capsys: Any) -> None:
        """Run the mutations, and tell the counts."""
        with capsys.disabled() if N_EXAMPLES else contextlib.nullcontext():
            test()
            print(f"{self.name}: {self.n_examples} mutations, {dict(self.counts)}", *self.guards, sep="\n    ")
        assert self.counts["refused"] and self.counts["accepted"], "a test that tells nothing"
        assert not self.wrong, "\n".join(f"{place}: {examples[0]}" for place, examples in self.wrong.items())
