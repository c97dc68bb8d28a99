"""The manual pages, held against the code: no page may say what the code does not.

Owns: that options, their values, defaults, keys and exit statuses of the pages
are those of the parsers, of the reader of files and of exits.py; and that mandoc
is content with every page.  Nothing here lists options or keys a second time:
they are asked of the code.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from turnaway import cli, config, ctl, daemon, exits, lists
from turnaway.draft import Draft, Mistakes
from turnaway.firewall import command as firewall
from turnaway.tables import Document, Table

MAN = Path(__file__).parents[2] / "man"
PAGES = ("turnaway-fast.8", "turnawayctl.8", "turnaway.toml.5")

# Every table that a file may have; what is wrong with it does not matter.
WHOLE = """
workers = 1
[waits]
[[listener]]
waits = {}
[[list]]
[personas.own.http]
[personas.own.text.pop3]
[personas.other]
file = "absent.toml"
"""


def need(tool: str) -> None:
    """Skip when a tool is missing; in CI that is a failure."""
    if shutil.which(tool) is None:
        pytest.fail(f"missing in CI: {tool}") if os.environ.get("CI") else pytest.skip(tool)


def section(page: str, name: str, kind: str = "Sh") -> str:
    """The source of a section, or of a subsection."""
    text = (MAN / page).read_text()
    found = re.search(rf"^\.{kind} {re.escape(name)}$(.*?)(?=^\.S[hs] |\Z)", text, re.M | re.S)
    if kind == "Sh":
        found = re.search(rf"^\.Sh {re.escape(name)}$(.*?)(?=^\.Sh |\Z)", text, re.M | re.S)
    assert found, f"{page} has no {kind} {name}"
    return found[1]


def items(source: str, macro: str) -> dict[str, str]:
    """{what stands on an .It line: the text up to the next one}, for that macro."""
    parts = re.split(rf"^\.It ({macro} .*)$", source, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def default(text: str) -> str | None:
    """The literal default that an item states."""
    found = re.search(
        r"^The default is(?: that of the command's name, else)?\n\.(?:Cm|Qq) (\S+)(?: [,.])?$",
        text,
        re.M,
    )
    return found[1] if found else None


def options(source: str) -> dict[frozenset[str], tuple[str, str]]:
    """{("-u", "--user"): (its value's name, the item's text)}"""
    found = {}
    for line, text in items(source, "Fl").items():
        names, values = set(), set()
        for one in line.split(" , "):
            words = re.fullmatch(r"Fl (\S+)(?: Ar (\S+))?", one)
            assert words, line
            names.add(f"-{words[1]}")
            values.add(words[2] or "")
        assert len(values) == 1, line
        found[frozenset(names)] = values.pop(), text
    return found


def offered(parser: argparse.ArgumentParser) -> dict[frozenset[str], str]:
    """The options of a parser, and the names of their values."""
    return {
        frozenset(action.option_strings): str(action.metavar or "")
        for action in parser._actions
        if action.option_strings
    }


def valued(source: str) -> dict[frozenset[str], str]:
    return {names: value for names, (value, _) in options(source).items()}


def statuses(page: str) -> set[int]:
    return {int(one) for one in re.findall(r"^\.It (\d+)$", section(page, "EXIT STATUS"), re.M)}


def known_statuses() -> set[int]:
    return {value for name, value in vars(exits).items() if name.isupper()}


def effective(tmp_path: Path) -> tuple[dict[str, object], dict[str, object], dict[str, object]]:
    """What is in force when a file says only what it must: top, listener, persona."""
    file = tmp_path / "turnaway.toml"
    file.write_text('location = "Earth"\n[[listener]]\naddress = "127.0.0.1"\nname = "x.example"\n')
    command = cli.parse(["turnaway-fast", "-c", str(file)], root=False)
    top = tomllib.loads(command.configuration())
    return top, top["listener"][0], top["personas"]["mail"]


# What any page must be


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_is_content(page: str) -> None:
    need("mandoc")
    said = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", MAN / page], capture_output=True, text=True
    )
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_its_sections(page: str) -> None:
    wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "FILES", "EXAMPLES", "SECURITY CONSIDERATIONS"]
    if page.endswith(".8"):
        wanted += ["OPTIONS", "EXIT STATUS"]
    for name in wanted:
        assert section(page, name).strip()


def test_every_page_is_tested() -> None:
    assert {path.name for path in MAN.iterdir()} == set(PAGES)


# turnaway-fast(8)


def test_the_options_of_turnaway_fast() -> None:
    source = section("turnaway-fast.8", "OPTIONS")
    assert valued(source) == offered(cli.parser("turnaway-fast"))


def test_the_defaults_of_turnaway_fast(tmp_path: Path) -> None:
    top, listener, persona = effective(tmp_path)
    known = {**persona, **listener, **top}
    told = 0
    for names, (_, text) in options(section("turnaway-fast.8", "OPTIONS")).items():
        key = max(names, key=len).lstrip("-")
        said = default(text)
        if said is None:
            continue
        assert agree(key, said, known), f"--{key}: the page says {said}"
        told += 1
    assert told >= 9


def agree(key: str, said: str, known: dict[str, object]) -> bool:
    """Whether a stated default is what is in force."""
    if key == "workers":
        return said == "auto"  # known is the number it came to
    if key == "metrics":
        return said == "none" and "metrics" not in known
    value = known[key]
    spelt = {True: "true yes", False: "false no"}[value] if isinstance(value, bool) else str(value)
    return said in spelt.split() or (key == "log" and said == spelt.partition(":")[0])


def test_the_exit_statuses_of_turnaway_fast() -> None:
    assert statuses("turnaway-fast.8") == {0, *known_statuses()}


def test_the_signals_of_turnaway_fast() -> None:
    said = re.findall(r"SIG[A-Z0-9]+", " ".join(items(section("turnaway-fast.8", "SIGNALS"), "Dv")))
    assert sorted(said) == sorted(one.name for one in daemon.SIGNALS)


def test_the_outcomes_of_connections_are_those_of_the_log() -> None:
    source = (Path(__file__).parents[2] / "ext/line.pxd").read_text()
    names = source.partition("outcome_name(")[2].partition("cdef inline")[0]
    written = set(re.findall(r'return b"(\w+)"', names))
    listed = re.search(
        r"^The outcome of.*?^\.El", section("turnaway-fast.8", "DIAGNOSTICS"), re.M | re.S
    )
    assert listed
    assert set(re.findall(r"^\.It Cm (\w+)$", listed[0], re.M)) == written


# turnawayctl(8)


def commands() -> dict[str, argparse.ArgumentParser]:
    for action in ctl.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("turnawayctl has no commands")


def test_the_options_of_turnawayctl() -> None:
    assert valued(section("turnawayctl.8", "OPTIONS")) == offered(ctl.parser())


def test_the_commands_of_turnawayctl_and_their_options() -> None:
    source = section("turnawayctl.8", "COMMANDS")
    headings = re.findall(r"^\.Ss (\w+)((?: (?:Op )?Ar \w+)*)$", source, re.M)
    assert [name for name, _ in headings] == list(commands())
    everywhere = offered(ctl.parser())
    for name, arguments in headings:
        parser = commands()[name]
        line = f"{name}{arguments}"
        own = {key: value for key, value in offered(parser).items() if key not in everywhere}
        assert valued(section("turnawayctl.8", line, "Ss")) == own, name
        words = [
            (one.metavar, None if one.nargs == argparse.PARSER else one.nargs)
            for one in parser._actions
            if not one.option_strings
        ]
        told = re.findall(r" (Op )?Ar (\w+)", arguments)
        assert words == [(argument, "?" if optional else None) for optional, argument in told], name


def test_the_defaults_of_turnawayctl() -> None:
    one = commands()["top"].get_default("interval")
    for names, (_, text) in options(section("turnawayctl.8", "COMMANDS")).items():
        if default(text) is not None:
            assert "--interval" in names
            assert default(text) == f"{one:g}"
    name = options(section("turnawayctl.8", "OPTIONS"))[frozenset({"--name"})][1]
    assert default(name) == ctl.COMMAND


def firewall_commands() -> dict[str, argparse.ArgumentParser]:
    for action in commands()["firewall"]._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("firewall has no commands")


def plan_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    firewall.plan_options(parser)
    return parser


def test_the_commands_of_the_firewall_and_their_options() -> None:
    source = section("turnawayctl.8", "FIREWALL")
    headings = re.findall(r"^\.Ss firewall (\w+)(?: Ar (\w+)( \.\.\.)?)?$", source, re.M)
    assert [name for name, _, _ in headings] == list(firewall_commands())
    page = "turnawayctl.8"
    shared = offered(plan_options())
    assert valued(section(page, "Options of a plan", "Ss")) == shared
    for name, argument, several in headings:
        parser = firewall_commands()[name]
        own = {
            key: value
            for key, value in offered(parser).items()
            if key not in shared and "--help" not in key
        }
        line = f"firewall {name}" + (f" Ar {argument}{several}" if argument else "")
        assert valued(section(page, line, "Ss")) == own, name
        words = [(one.metavar, one.nargs) for one in parser._actions if not one.option_strings]
        assert words == ([(argument, "+" if several else None)] if argument else []), name


def test_the_defaults_of_the_firewall() -> None:
    told = 0
    for name, parser in {"Options of a plan": plan_options(), **firewall_commands()}.items():
        heading = re.compile(rf"^\.Ss ((?:firewall )?{name}\b.*)$", re.M)
        found = heading.search(section("turnawayctl.8", "FIREWALL"))
        assert found
        for names, (_, text) in options(section("turnawayctl.8", found[1], "Ss")).items():
            said = default(text)
            if said is None:
                continue
            (action,) = (one for one in parser._actions if names == set(one.option_strings))
            known = {"--port": "25"}.get(max(names), str(action.default))
            assert said == known, names
            told += 1
    assert told >= 10


def test_the_exit_statuses_of_turnawayctl() -> None:
    """Those that its own summary names, and those that it raises."""
    said = statuses("turnawayctl.8")
    summary = re.search(r"Exit statuses are.*", str(ctl.__doc__), re.S)
    assert summary
    named = {int(one) for one in re.findall(r"\b(\d\d)\b", summary[0])}
    used = {value for name, value in vars(exits).items() if name.isupper() and name in vars(ctl)}
    assert said == {0, *named, *used}


# turnaway.toml(5)


def asked() -> dict[str, set[str]]:
    """The keys that the reader of files asks for, by table; `*` stands for any name."""
    document = Document("whole.toml", WHOLE.encode(), exits.CONFIGURATION)
    config._File(document, Draft(), Path("/nonexistent"), Mistakes(), False)
    found: dict[str, set[str]] = {}

    def walk(table: Table) -> None:
        path = ".".join(str(part) for part in table.path)
        path = re.sub(r"^personas\.\w+", "personas.*", path)
        path = re.sub(r"^(listener|list)\.0", r"\1", path)
        path = re.sub(r"\.text\.\w+$", ".text.*", path).replace("listener.waits", "waits")
        found.setdefault(path, set()).update(table.asked)
        for one in table.tables:
            walk(one)

    walk(document.root)
    return found


def documented(*names: str) -> set[str]:
    found: set[str] = set()
    for name in names:
        lines = items(section("turnaway.toml.5", name, "Ss"), "Ic")
        for line in lines:
            words = re.fullmatch(r"Ic (\S+) Ar (string|number|boolean|list|table)", line)
            assert words, line
            found.add(words[1])
    return found


def test_the_keys_of_the_configuration() -> None:
    known = asked()
    message = documented("Keys of the message")
    assert (
        documented("Keys of the process") | message | {"personas", "listener", "list"} == known[""]
    )
    assert documented("Listeners") | message == known["listener"]
    assert documented("Lists") == known["list"]
    assert documented("Time limits") == known["waits"]
    assert documented("Personas") == known["personas.*"]
    assert documented("Pages") == known["personas.*.http"]
    assert documented("Refusals") == known["personas.*.text.*"]
    assert known.keys() == {
        *("", "listener", "list", "waits", "personas", "personas.*", "personas.*.http"),
        *("personas.*.text", "personas.*.text.*"),
    }


def test_the_defaults_of_the_configuration(tmp_path: Path) -> None:
    top, listener, persona = effective(tmp_path)
    waits = listener.pop("waits")
    port = str(listener.pop("address")).rpartition(":")[2]
    known = {**persona, **listener, **top, "port": port}
    told = 0
    for name, values in (
        ("Keys of the process", known),
        ("Keys of the message", known),
        ("Listeners", known),
        ("Time limits", waits),
        ("Personas", persona),
    ):
        for line, text in items(section("turnaway.toml.5", name, "Ss"), "Ic").items():
            said = default(text)
            if said is not None:
                key = line.split()[1]
                assert agree(key, said, values), f"{key}: the page says {said}"
                told += 1
    assert told >= 14
    everything = items(section("turnaway.toml.5", "Time limits", "Ss"), "Ic").values()
    assert all(default(text) for text in everything)


def test_what_a_reload_cannot_change_is_told() -> None:
    said = set(re.findall(r"^\.Ic (\S+)", section("turnaway.toml.5", "CAVEATS"), re.M))
    fixed = {daemon.NAMES.get(name, name) for name in daemon.FIXED}
    assert said - {"group"} == fixed


def test_the_example_of_the_configuration_is_well(tmp_path: Path) -> None:
    (example, mistyped) = re.findall(
        r"^\.Bd -literal.*?\n(.*?)^\.Ed", section("turnaway.toml.5", "EXAMPLES"), re.M | re.S
    )
    file = tmp_path / "turnaway.toml"
    file.write_text(example)
    settings = cli.parse(["turnaway-fast", "-c", str(file)], root=False).settings
    assert [(one.port, one.persona.name) for one in settings.listeners] == [
        *((25, "mail"), (25, "mail"), (2525, "list"), (2525, "list"))
    ]
    file.write_text('location = "Earth"\n[[listener]]\naddress = "::"\nport = "25x"\nnmae = "x"\n')
    with pytest.raises(exits.Failure) as failure:
        cli.parse(["turnaway-fast", "-c", str(file)], root=False)
    said = "\n".join(failure.value.reasons)
    for line in mistyped.splitlines():
        assert line in said.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("page", ["turnaway-fast.8", "turnawayctl.8"])
def test_the_examples_of_the_commands_are_parsed(page: str, tmp_path: Path) -> None:
    source = section(page, "EXAMPLES").replace("\\e\n", "")
    told = 0
    for line in re.findall(r"^(?:turnaway-fast|turnawayctl) .*$", source, re.M):
        words = shlex.split(line.partition(" >")[0].partition(" | ")[0])
        if words[0] == "turnawayctl":
            ctl.parser().parse_args(words[1:])
        elif "-c" not in words:
            assert cli.parse(words, root=False).settings.listeners
        told += 1
    assert told >= 4


# contrib/turnaway.toml


def test_the_example_file_has_every_key_and_is_well(tmp_path: Path) -> None:
    text = (MAN.parent / "contrib/turnaway.toml").read_text()
    file = tmp_path / "turnaway.toml"
    file.write_text(text)
    assert len(cli.parse(["turnaway-fast", "-c", str(file)], root=False).settings.listeners) == 2
    everything = re.sub(r"^#(?! \S)", "", text, flags=re.M)
    keys = set(tomllib.loads(everything))
    assert keys == asked()[""]
    # As root, in a place where the user and the directory exist.
    everything = everything.replace('"/var/empty"', f'"{tmp_path}"')
    everything = re.sub(r'^(user|group) = "turnaway"', "", everything, flags=re.M)
    file.write_text(everything)
    for name, line in (("drop_v4.json", '{"cidr":"203.0.113.0/24"}'), ("drop_v6.json", "")):
        (tmp_path / name).write_text(line + "\n")
    (tmp_path / "allow.txt").write_text("203.0.113.7\n")
    settings = cli.parse(["turnaway-fast", "-c", str(file)], root=True).settings
    listeners = settings.listeners
    assert [one.persona.name for one in listeners] == ["mail", "mail", "our-list", "our-list"]
    assert [(one.name, one.allow) for one in settings.lists] == [
        ("spamhaus-drop", False),
        ("wanted", True),
    ]
    keys = {key for one in tomllib.loads(everything)["list"] for key in one}
    assert keys == asked()["list"]


def test_the_formats_of_list_files() -> None:
    shown = items(section("turnaway.toml.5", "LIST FILES"), "Cm")
    assert {line.removeprefix("Cm ") for line in shown} == set(lists.FORMATS)


def test_the_defaults_of_the_example_file_are_those_of_the_code(tmp_path: Path) -> None:
    text = (MAN.parent / "contrib/turnaway.toml").read_text()
    top, listener, _ = effective(tmp_path)
    waits = listener.pop("waits")
    assert isinstance(waits, dict)
    known = {**listener, **top, **waits}
    before = text[: text.index("# A host")]
    choices = {"contact", "metrics", "user", "group", "chroot", "pidfile", "control", "workers"}
    for key, value in tomllib.loads(re.sub(r"^#(?! \S)", "", before, flags=re.M)).items():
        for name, said in value.items() if isinstance(value, dict) else [(key, value)]:
            if name not in {*choices, "location"}:
                assert agree(name, str(said).lower(), known), name
