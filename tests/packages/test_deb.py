"""The Debian package: installed by apt into a root directory made for it, and run there.

Owns: what the package installs, leaves alone and removes, told by the machine and
not by the package's list.  The root directory is a Debian of its own, made by
mmdebstrap from the mirror this machine uses; what was installed runs in it, in
network and process namespaces of its own, so that port 25 is free.  No init runs
there: the unit is read, and its command is started as it says, by hand.
`make test-deb` builds the package and runs this.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import need, need_root

import turnaway

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "deb"

pytestmark = [pytest.mark.package, pytest.mark.timeout(580)]  # apt fetches a Debian

# Everything ends with the namespace: its first process is the shell.
WITHIN = """
mount -t proc proc "$1/proc" && ip link set lo up && exec chroot "$1" /bin/sh -euc "$2"
"""


class Scratch:
    """A Debian in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, script: str, status: int = 0) -> str:
        """What a shell script says inside, on both outputs; fails at another status."""
        ended = subprocess.run(
            [
                *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"),
                *("sh", "-c", WITHIN, "sh", self.path, script),
            ],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert ended.returncode == status, f"status {ended.returncode}:\n{ended.stdout}"
        return ended.stdout


@pytest.fixture(scope="module")
def package() -> Path:
    found = sorted(BUILT.glob(f"turnaway_{turnaway.__version__}-*.deb"))
    assert len(found) == 1, f"{found or 'no package'} in {BUILT}: make deb"
    return found[0]


@pytest.fixture(scope="module")
def scratch(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scratch]:
    need("mmdebstrap", "unshare", "ip")
    need_root()
    path = tmp_path_factory.mktemp("scratch") / "root"
    for above in (path.parent, *list(path.parents)[1:3]):
        above.chmod(0o755)  # the user turnaway must come to what it imports
    made = subprocess.run(
        [
            *("mmdebstrap", "--variant=apt"),
            f"--customize-hook=copy-in {package} /root",
            '--customize-hook=chroot "$1" apt-get install -y --no-install-recommends '
            f"/root/{package.name}",
            *("bookworm", path),
        ],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]
    print(made.stdout + made.stderr)
    yield Scratch(path)
    subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)


def test_what_is_installed(scratch: Scratch) -> None:
    assert re.search(r"^ii\s+turnaway\b", scratch.run("dpkg -l turnaway"), re.M)
    assert scratch.run("dpkg --verify turnaway") == ""
    listed = set(scratch.run("dpkg -L turnaway").splitlines())
    for name in ("fast", "mail", "blocked", "spammer", "abused", "worm"):
        assert f"/usr/sbin/turnaway{'-' if name == 'fast' else ''}{name}" in listed
    assert {
        "/usr/sbin/turnawayctl",
        "/etc/turnaway/turnaway.toml",
        "/etc/logrotate.d/turnaway",
        "/lib/systemd/system/turnaway-fast.service",
        "/usr/lib/sysusers.d/turnaway.conf",
        "/usr/lib/tmpfiles.d/turnaway.conf",
        "/usr/share/man/man8/turnaway-fast.8.gz",
        "/usr/share/man/man8/turnawaymail.8.gz",
        "/usr/share/man/man8/turnawayctl.8.gz",
        "/usr/share/man/man5/turnaway.toml.5.gz",
        "/usr/share/bash-completion/completions/turnawayctl",
        "/usr/share/zsh/vendor-completions/_turnaway-fast",
        "/usr/share/fish/vendor_completions.d/turnaway-fast.fish",
        "/usr/share/doc/turnaway/NOTICE",
        "/usr/share/doc/turnaway/examples/fail2ban/filter.d/turnaway.conf",
        "/usr/lib/python3/dist-packages/turnaway/py.typed",
    } <= listed
    assert not [name for name in listed if name.startswith(("/usr/local", "/usr/bin/"))]
    conffiles = scratch.run("dpkg-query -W -f '${Conffiles}' turnaway")
    assert re.findall(r"/\S+", conffiles) == [
        "/etc/logrotate.d/turnaway",
        "/etc/turnaway/turnaway.toml",
    ]


def test_the_user_and_its_directories(scratch: Scratch) -> None:
    assert re.search(
        r"^turnaway:x:\d+:\d+:Turnaway daemon:.*nologin$", scratch.run("getent passwd turnaway")
    )
    found = scratch.run("stat -c '%U %a %n' /etc/turnaway /var/log/turnaway")
    assert found.splitlines() == ["root 755 /etc/turnaway", "turnaway 750 /var/log/turnaway"]


def test_the_service_is_there_and_not_started(scratch: Scratch) -> None:
    wants = scratch.run("find /etc/systemd/system -name '*turnaway*'")
    assert wants == ""
    # Here no init would have started it; so look that none is asked to, but to
    # restart it where it runs.
    asked = scratch.run("grep -h deb-systemd-invoke /var/lib/dpkg/info/turnaway.p*")
    assert set(re.findall(r"deb-systemd-invoke (\S+)", asked)) == {"try-restart", "stop"}
    unit = scratch.run("cat /lib/systemd/system/turnaway-fast.service")
    assert "ExecStart=/usr/sbin/turnaway-fast --foreground" in unit
    assert "/usr/local" not in unit
    scratch.run("systemd-analyze verify --man=no turnaway-fast.service")


def test_the_installed_command_as_the_unit_starts_it(scratch: Scratch) -> None:
    """As root, so that it makes the same way down to the user turnaway."""
    said = scratch.run(
        """
command=$(sed -n 's/^ExecStart=//p' /lib/systemd/system/turnaway-fast.service | sed 's|%t|/run|')
mkdir /run/turnaway-fast && chown turnaway: /run/turnaway-fast
turnaway-fast --check
$command --log stderr 2>/tmp/log & pid=$!
for i in $(seq 100); do grep -q started: /tmp/log && break; sleep 0.1; done
grep -h Uid: /proc/$pid/task/*/status | sort -u
id -u turnaway
python3 -c '
import socket
for address in ("127.0.0.1", "::1"):
    with socket.create_connection((address, 25), 5) as one:
        print(one.makefile(newline="").read(), end="")
'
turnawayctl -s /run/turnaway-fast/turnaway-fast.ctl status
turnawayctl lookup 203.0.113.7
kill $pid; wait $pid
echo stopped with $?
cat /tmp/log
rm -r /tmp/log /run/turnaway-fast
"""
    )
    print(said)
    uid = re.search(r"^(\d+)$", said, re.M)[1]  # type: ignore[index]
    assert re.findall(r"^Uid:\s+(.*)$", said, re.M) == ["\t".join([uid] * 4)]
    assert uid != "0"
    # By both families, and as lookup says what a client would be told.
    version = turnaway.__version__.rpartition(".")[0]
    assert said.count(f"421-out.example.com TurnAway v{version} (not) ready at ") == 3
    assert said.count("421 Your mail software MAY be broken.  Closing connection.") == 3
    assert "stopped with 0" in said


def test_the_names_choose_the_persona(scratch: Scratch) -> None:
    said = scratch.run("turnawayworm --show-banner Earth '203.0.113.7 mx.example.com'")
    assert "infected host" in said


def test_a_changed_configuration_outlives_an_upgrade_and_purging_leaves_nothing(
    scratch: Scratch, package: Path
) -> None:
    scratch.run("echo '# ours' >>/etc/turnaway/turnaway.toml")
    scratch.run(f"dpkg --force-confold -i /root/{package.name}")
    assert scratch.run("tail -n 1 /etc/turnaway/turnaway.toml") == "# ours\n"
    scratch.run("dpkg --remove turnaway && test -e /etc/turnaway/turnaway.toml")
    scratch.run("touch /var/log/turnaway/old.json && dpkg --purge turnaway")
    left = scratch.run("find / -xdev -path /proc -prune -o -name '*turnaway*' -print")
    assert left.splitlines() == [f"/root/{package.name}"]
