"""`turnaway-fast`, the five 2003 names, and `python -m turnaway`."""

import os
import sys
import time
from collections.abc import Sequence

from turnaway import answers, cli, daemon
from turnaway.exits import OS_ERROR, Failure
from turnaway.lists.files import openable
from turnaway.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (sysexits(3))."""
    argv = sys.argv if argv is None else argv
    # Whoever closed standard input or output must not get a socket there.
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)
    try:
        command = cli.parse(argv)
        if command.show_banner:
            _show_banners(command.settings)
        elif command.print_config:
            _print(command.configuration().encode())
        elif command.check:
            _check(command.settings)
        else:
            return daemon.run(command.settings, command.reread, command.sources)
        return 0
    except Failure as failure:
        return cli.report(cli.program_name(argv[0]), failure)


def _show_banners(settings: Settings) -> None:
    for listener in settings.listeners:
        how = answers.behaviour(listener)
        octets, _ = answers.render(listener, time.time())[how.blind]
        # The client's address is known only when there is one.
        octets = octets.replace(b"\0", b"{client}") if how.blind == "banner" else octets
        print(
            f"{listener.place} {listener.name}: {len(octets)} octets", file=sys.stderr, flush=True
        )
        _print(octets)


def _check(settings: Settings) -> None:
    from turnaway import lint  # the daemon has no use for it

    for said in lint.warnings(settings):
        print(f"{settings.program}: warning: {said}", file=sys.stderr)
    for path in [path for one in settings.lists for path in one.files]:
        if settings.identity and not openable(path, settings.identity.uid, settings.identity.gid):
            print(
                f"{settings.program}: warning: {path}: {settings.identity.user} may not read it,"
                " which a reload does",
                file=sys.stderr,
            )
    listeners = ", ".join(f"{one.place} {one.name}" for one in settings.listeners)
    _print(f"{settings.program}: all is well: {listeners}\n".encode())


def _print(octets: bytes) -> None:
    """To standard output, whole or not at all well."""
    try:
        with open(1, "wb", buffering=0, closefd=False) as output:
            output.write(octets)
    except OSError as error:
        raise Failure(OS_ERROR, f"standard output: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
