"""Writes the completion files beside it, from the parsers of the two commands.

    python contrib/completions/make.py

Owns: bash/, zsh/ and fish/, whose files are named as each shell looks for them.
Needs shtab, which only whoever develops has.
"""

from pathlib import Path

import shtab

from turnaway import cli, ctl

HERE = Path(__file__).parent
COMMANDS = {"turnaway-fast": cli.parser("turnaway-fast"), "turnawayctl": ctl.parser()}
FILES = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}


def files() -> dict[str, str]:
    """Path below this folder -> what belongs in it."""
    return {
        f"{shell}/{file.format(name)}": shtab.complete(made, shell).rstrip() + "\n"
        for name, made in COMMANDS.items()
        for shell, file in FILES.items()
    }


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text)
