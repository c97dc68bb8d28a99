"""`turnaway-fast`, the five 2003 names, and `python -m turnaway`."""

import os
import sys
import time
from collections.abc import Sequence

from turnaway import answers, cli, daemon
from turnaway.exits import OS_ERROR, Failure


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (sysexits(3))."""
    argv = sys.argv if argv is None else argv
    # Whoever closed standard input or output must not get a socket there.
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)
    try:
        command = cli.parse(argv)
        settings = command.settings
        if command.show_banner:
            for listener in settings.listeners:
                how = answers.behaviour(listener)
                octets, _ = answers.render(listener, time.time())[how.blind]
                print(
                    f"{listener.place} {listener.name}: {len(octets)} octets",
                    file=sys.stderr,
                    flush=True,
                )
                try:
                    with open(1, "wb", buffering=0, closefd=False) as output:
                        output.write(octets)
                except OSError as error:
                    raise Failure(OS_ERROR, f"standard output: {error.strerror}") from None
            return 0
        if command.check:
            listeners = ", ".join(f"{one.place} {one.name}" for one in settings.listeners)
            for listener in settings.listeners:
                for said in answers.warnings(listener):
                    print(f"{settings.program}: warning: {said}", file=sys.stderr)
            print(f"{settings.program}: all is well: {listeners}")
            return 0
        return daemon.run(settings)
    except Failure as failure:
        return cli.report(cli.program_name(argv[0]), failure)


if __name__ == "__main__":
    sys.exit(main())
