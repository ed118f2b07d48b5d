"""A command's options: help with an example and the time it takes, errors of one line."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from ppl_fe.arguments import did_you_mean, near_argument


class Parser(argparse.ArgumentParser):
    """Parse a command's options as argparse does, and say in one line what is wrong with them.

    What is not given is left out of what `read` returns, so that Python's defaults hold.

    Args:
        command: its name in the shell, after `ppl-fe`.
        description: what it does, and its exit status.
        duration: how long it takes.
        example: a command line, or several lines of one.

    Example:
        >>> parser = Parser("draw", description="Draw.", duration="Seconds.", example="draw")
        >>> _ = parser.add_argument("--num-draws", type=int)
        >>> parser.read(["--num-draws", "3"])
        {'num_draws': 3}
    """

    def __init__(self, command: str, *, description: str, duration: str, example: str) -> None:
        time = textwrap.fill(duration, 88)
        super().__init__(
            prog=f"ppl-fe {command}",
            description=textwrap.dedent(description).strip(),
            epilog=f"how long it takes:\n{textwrap.indent(time, '  ')}\n\n"
            f"example:\n{textwrap.indent(textwrap.dedent(example).strip(), '  ')}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
        )

    def read(self, given: Sequence[str]) -> dict[str, Any]:
        """Read the options, or end with the status 2 and an error of one line.

        Unknown ones are looked for first: of a misspelt option argparse would say that the one it
        stands for is missing.
        """
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for text in given:
            if text == "--":
                break
            name = text.partition("=")[0]
            if not text.startswith("-") or name in self._option_string_actions or _is_number(text):
                continue
            if not text.startswith("--") or not any(option.startswith(name) for option in known):
                self.error(f"no option {name}; {_instead(name, known)}")
        return vars(self.parse_args(given))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the nearest choice to one that there is not, beside all of them."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            near = did_you_mean(str(value), choices)
            raise argparse.ArgumentError(
                action,
                f"{value!r} is none of {', '.join(choices)}{near and f'; {near}'}",
            )

    def error(self, message: str) -> NoReturn:
        """End with the status 2 and the message alone, without the usage that argparse prints."""
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help shows all options)\n")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "-"
    return True


def _instead(option: str, known: Sequence[str]) -> str:
    names = {name.lstrip("-").replace("-", "_"): name for name in known}
    near = near_argument(option.lstrip("-").replace("-", "_"), names)
    return f"did you mean {names[near]}?" if near else "it is not one of this command's"
