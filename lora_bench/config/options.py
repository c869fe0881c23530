"""Options of a command as `--key value`, and as `key=value`, which is how a run is described."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence

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
    """The words as argparse takes them, each option once with all that was given for it in either spelling."""
    actions = {name: action for action in parser._actions for name in action.option_strings}
    rest: list[str] = []
    given: dict[str, list[str]] = {}
    waiting = ""  # for a value, whatever that looks like
    several = ""  # an option that may take the next word too
    for word in argv:
        matched = re.fullmatch(r"([A-Za-z][\w-]*|--[\w-]+)=(.*)", word, flags=re.DOTALL)
        if waiting:
            given.setdefault(waiting, []).append(word)
            several, waiting = waiting if actions[waiting].nargs == "+" else "", ""
        elif word in actions and actions[word].nargs == 0:
            given.setdefault(word, []).append("true")
            several = ""
        elif word in actions:
            several, waiting = "", word
        elif matched and (option := _option(parser, actions, matched[1])):
            given.setdefault(option, []).append(matched[2])
            several = ""
        elif several and not word.startswith("-"):
            given[several].append(word)
        else:
            rest.append(word)
    rest += [waiting] if waiting else []
    return [
        *rest,
        *(part for option, values in given.items() for part in _once(parser, actions[option], option, values)),
    ]


def _option(parser: argparse.ArgumentParser, actions: Mapping[str, argparse.Action], key: str) -> str:
    """The option of a key; none where a dashed one is none, of which argparse says so itself."""
    option = key if key.startswith("--") else f"--{key.replace('_', '-')}"
    if option not in actions and option != key:
        names = [name[2:].replace("-", "_") for name in actions if name.startswith("--")]
        parser.error(f"{key}: no such option; options are {', '.join(names)}{did_you_mean(key, names)}")
    return option if option in actions else ""


def _once(parser: argparse.ArgumentParser, action: argparse.Action, option: str, values: Sequence[str]) -> list[str]:
    """One option with its values, of which most take one."""
    key = option.lstrip("-").replace("-", "_")
    if action.nargs == "+":
        return [option, *values]
    if action.nargs == 0:
        values = [value.lower() for value in values]
        wrong = [value for value in values if value not in ("true", "false")]
        if wrong:
            parser.error(f"{key}: {wrong[0]!r} is no switch; give true or false")
    first, *others = dict.fromkeys(values)
    if others:
        about = f": {action.help}" if action.help else ""
        parser.error(f"{key}: given as {first!r} and as {others[0]!r}; it takes one value{about}")
    if action.nargs == 0:
        return [option] if first == "true" else []
    return [f"{option}={first}"]
