"""nft(8) and ip(8), run without a shell; throw-away namespaces to try rules in.

Owns: which programs are run, and how.  Arguments are lists, text goes in by
standard input, and programs are looked for in the system's own directories
alone, whatever PATH says: these commands are root's.

Raises Failure: 69 when a program or a namespace cannot be had, 77 when not
permitted, 71 for what else goes wrong.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from turnaway.exits import NO_PERMISSION, OS_ERROR, UNAVAILABLE, Failure
from turnaway.firewall.nftables import TABLE

PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
SECONDS = 600.0  # half a million elements take nft one
PACKAGES = {"nft": "nftables", "ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
_OPENED = f"table inet {TABLE} {{"
WORDS = 20  # lines that a program's complaint may have


def program(name: str) -> str:
    """Its path."""
    found = shutil.which(name, path=PATH)
    if found is None:
        raise Failure(
            UNAVAILABLE, f"{name}: not found; expected the package {PACKAGES.get(name, name)}"
        )
    return found


def there(name: str) -> bool:
    """Whether this system has it."""
    return shutil.which(name, path=PATH) is not None


def run(name: str, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """To its end, whatever that is."""
    return _run([program(name), *arguments], text)


def _run(argv: Sequence[str], text: str | None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            input=text or "",
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=SECONDS,
            env={"PATH": PATH, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failure(OS_ERROR, f"{argv[0]}: not done after {SECONDS:.0f} s") from None
    except OSError as error:
        raise Failure(OS_ERROR, f"{argv[0]}: {error.strerror or error}") from None


def complaint(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a program that failed said, without the empty lines."""
    said = [line.rstrip() for line in done.stderr.splitlines() if line.strip()]
    return said[:WORDS] or [f"ended with status {done.returncode}"]


def nft(*arguments: str, text: str | None = None) -> str:
    """What nft(8) says, on this host's own ruleset."""
    done = run("nft", *arguments, text=text)
    if done.returncode == 0:
        return done.stdout
    said = complaint(done)
    if any("not permitted" in line for line in said):
        raise Failure(NO_PERMISSION, "nft: not permitted; be root")
    raise Failure(OS_ERROR, *(f"nft: {line}" for line in said))


def loaded() -> bool:
    """Whether our table is there."""
    return table() is not None


def table(elements: bool = False) -> str | None:
    """Our table in a form that can be loaded again, with what is in its sets or without;
    None if it is not there."""
    # The whole ruleset, since nft 1.0.6 reads every set's elements for anything
    # that is asked of one table, `--terse` or not: seconds where a list is large.
    _, there, rest = f"\n{nft('--terse', 'list', 'ruleset', 'inet')}".partition(f"\n{_OPENED}\n")
    if not there:
        return None
    if elements:
        return nft("list", "table", "inet", TABLE)
    body = rest.partition("\n}\n")[0]
    return f"{_OPENED}\n{body}\n}}\n"


def listed() -> list[dict[str, Any]]:
    """The objects of the ruleset as `nft -j` has them, without what is in sets and without the
    first, which tells versions."""
    found = json.loads(nft("--json", "--terse", "list", "ruleset"))
    return [one for one in found["nftables"] if "metainfo" not in one]


# A throw-away namespace


def tried(texts: Sequence[str]) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Load each text for real where it does nothing: in a network namespace of its own.

    Returns what nft complained of each (nothing: it loads), and the tables
    that then were there.  Root is not needed where user namespaces are allowed.
    """
    # Root needs no user namespace; others get one that is theirs.
    options = ["-n"] if os.geteuid() == 0 else ["-U", "-r", "-n"]
    inside = [sys.executable, "-I", "-m", "turnaway.firewall.programs"]
    done = _run([program("unshare"), *options, "--", *inside], json.dumps(list(texts)))
    if done.returncode != 0:
        raise Failure(
            UNAVAILABLE,
            f"no namespace to try rules in: {complaint(done)[-1]}; be root, or allow user namespaces",
        )
    answer = json.loads(done.stdout)
    return answer["complaints"], answer["tables"]


def _inside() -> None:
    """In the namespace: texts in, what nft said of each out."""
    complaints = []
    for text in json.load(sys.stdin):
        done = run("nft", "-f", "-", text=text)
        complaints.append(complaint(done) if done.returncode else [])
    tables = [one["table"] for one in listed() if "table" in one]
    json.dump({"complaints": complaints, "tables": tables}, sys.stdout)


if __name__ == "__main__":
    _inside()
