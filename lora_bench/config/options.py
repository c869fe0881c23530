"""Options of a command as `--key value`, and as `key=value`, which is how a run is described."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from lora_bench.config.errors import did_you_mean


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, each in either spelling: `store=runs` is `--store runs`, and `overwrite=true` is `--overwrite`.

    An option that takes several values may be given several times: `store=here store=there`. One that takes a single
    value and is given two is refused, since the first would be left out in silence.

    Args:
        argv: None takes those of the process.
    """
    return parser.parse_args(_dashed(parser, sys.argv[1:] if argv is None else argv))


def _dashed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    actions = {name: action for action in parser._actions for name in action.option_strings}
    names = [name[2:].replace("-", "_") for name in actions if name.startswith("--")]
    words: list[str] = []
    several: dict[str, list[str]] = {}
    single: dict[str, str] = {}
    is_value = False  # of the option before it, whatever it looks like
    for word in argv:
        matched = re.fullmatch(r"([A-Za-z][\w-]*)=(.*)", word, flags=re.DOTALL)
        if is_value or not matched:
            words.append(word)
            is_value = word in actions and actions[word].nargs != 0
            continue
        key, value = matched.groups()
        option = f"--{key.replace('_', '-')}"
        action = actions.get(option)
        if action is None:
            parser.error(f"{key}: no such option; options are {', '.join(names)}{did_you_mean(key, names)}")
        if action.nargs == 0:
            if value.lower() not in ("true", "false"):
                parser.error(f"{key}: {value!r} is no switch; give true or false")
            words += [option] if value.lower() == "true" else []
        elif action.nargs == "+":
            several.setdefault(option, []).append(value)
        elif single.setdefault(option, value) != value:
            parser.error(f"{key}: given as {single[option]!r} and as {value!r}; it takes one value: {action.help}")
        else:
            words.append(f"{option}={value}")
    return [*words, *(part for option, values in several.items() for part in (option, *values))]
