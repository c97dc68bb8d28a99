"""Writes the completion files beside it, from the parsers of the two commands.

    python contrib/completions/make.py

Needs shtab, which only whoever develops has.  bash and zsh come from shtab, and so
does fish; where they are installed depends on the system.
"""

from pathlib import Path

import shtab

from turnaway import cli, ctl

HERE = Path(__file__).parent
COMMANDS = {"turnaway-fast": cli.parser("turnaway-fast"), "turnawayctl": ctl.parser()}
SHELLS = ("bash", "zsh", "fish")


def files() -> dict[str, str]:
    """Name of the file -> what belongs in it."""
    return {
        f"{name}.{shell}": shtab.complete(made, shell).rstrip() + "\n"
        for name, made in COMMANDS.items()
        for shell in SHELLS
    }


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text)
