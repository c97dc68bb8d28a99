"""What was asked for, before it is settled: the command line, the files, and how
they come together.

Owns: the order in which a value is looked for, and every check that needs more
than one value.  A listener's own value wins; then the command line's; then the
top of the files; then the persona's, or the default.
"""

import grp
import importlib.util
import os
import pwd
from dataclasses import dataclass, field
from typing import Any, TypeVar

from turnaway import answers, lists, personas
from turnaway.exits import CONFIGURATION, DATA, NO_PERMISSION, NO_USER, USAGE, Failure
from turnaway.lists.table import MOST_LISTS, Table
from turnaway.settings import (
    PROMETHEUS,
    SYSLOG_SOCKET,
    Detail,
    Exposition,
    Identity,
    Limits,
    List,
    Listener,
    LogTarget,
    Persona,
    Settings,
    Waits,
)
from turnaway.tables import nearest
from turnaway.values import workers

T = TypeVar("T")
Asked = tuple[str | None, str | None]  # user and group, as they were said

MOST_LISTENERS = 4096
# What is said, anew each second, by each listener to who is on each list and to who is
# on none: 33 KiB for each of its answers.
MOST_VOICES = 4096
DEFAULT_PERSONA = "mail"  # 421: the one that loses nothing when it was a mistake


def _enterable(path: str) -> None:
    """Raises OSError for what is no absolute path of a directory; what is shipped is
    read before it cannot be."""
    if not os.path.isabs(path) or not os.path.isdir(path):
        raise NotADirectoryError(path)
    for name in personas.NAMES:
        personas.shipped(name)


@dataclass
class ListenerDraft:
    """One [[listener]], or one LISTENER of the command line."""

    where: str  # "LISTENER argument 2 '...'", or file:line: listener[1]
    places: list[tuple[str, int]]
    name: str
    values: dict[str, Any] = field(default_factory=dict)
    wheres: dict[str, str] = field(default_factory=dict)  # of its keys, in a file


@dataclass
class ListDraft:
    """One [[list]]."""

    where: str  # file:line: list[1]
    name: str
    files: tuple[str, ...]
    format: str | None
    persona: str | None
    contact: str
    allow: bool


@dataclass
class Draft:
    """Values by name, checked one by one; `wheres` says where each stood."""

    values: dict[str, Any] = field(default_factory=dict)
    wheres: dict[str, str] = field(default_factory=dict)
    listeners: list[ListenerDraft] = field(default_factory=list)
    lists: list[ListDraft] = field(default_factory=list)
    personas: dict[str, Persona] = field(default_factory=dict)
    misread: set[str] = field(default_factory=set)  # personas whose mistakes are told
    sources: list[str] = field(default_factory=list)  # paths of the files that were read

    def put(self, key: str, value: Any, where: str) -> None:
        self.values[key] = value
        self.wheres[key] = where


class Mistakes:
    """Every mistake, once, with the exit status of its kind."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []

    def add(self, said: str, status: int = USAGE) -> None:
        if (status, said) not in self.found:
            self.found.append((status, said))

    def finish(self) -> None:
        """Raise Failure if there are any; of several kinds, files come first."""
        if not self.found:
            return
        kinds = {status for status, _ in self.found}
        if len(kinds) == 1:
            status = kinds.pop()
        else:
            status = CONFIGURATION if CONFIGURATION in kinds else USAGE
        raise Failure(status, *(said for _, said in self.found))


class Settling:
    """One command line and one set of files becoming Settings."""

    def __init__(
        self,
        program: str,
        line: Draft,
        files: Draft,
        mistakes: Mistakes,
        root: bool,
        became: dict[Asked, Identity | None] | None = None,
    ) -> None:
        self.root = root  # we were started as root
        self.became = became  # of a reload: whom the daemon became, who asked for that
        self.asked: Asked = None, None
        self.program = program
        self.line = line
        self.files = files
        self.mistakes = mistakes
        self._shipped: dict[str, Persona | None] = {}

    def value(self, key: str, default: T, own: ListenerDraft | None = None) -> T:
        for values in (own.values if own else {}, self.line.values, self.files.values):
            if key in values:
                found: T = values[key]
                return found
        return default

    def where(self, key: str) -> str:
        return self.line.wheres.get(key) or self.files.wheres.get(key) or f"--{key}"

    def settings(self) -> Settings:
        """Raises Failure with every mistake."""
        listeners = self._listeners()
        asked = self._lists(listeners)
        identity = self._identity()
        pidfile = self.value("pidfile", self._default_path(".pid"))
        control = self.value("control", self._default_path(".ctl"))
        self._chroot()
        foreground = self.value("foreground", False) or bool(os.environ.get("NOTIFY_SOCKET"))
        log: tuple[LogTarget, str] = self.value("log", ("syslog", SYSLOG_SOCKET))
        target, path = log
        if (target == "stderr" or (target == "json" and path == "-")) and not foreground:
            self.mistakes.add(
                f"{self.where('log')} {target}: a daemon in the background has no standard error;"
                " expected --foreground with it, or --log syslog"
            )
        metrics: Exposition | None = self.value("metrics", None)
        wanted = metrics is not None and self.became is None
        if wanted and importlib.util.find_spec("prometheus_client") is None:
            self.mistakes.add(f"{self.where('metrics')}: {PROMETHEUS}", CONFIGURATION)
        lookup = self._lookup(asked)
        self.mistakes.finish()
        lines: tuple[Detail, int] = self.value("log-connections", ("capped", 20))
        detail, number = lines
        default = Limits()
        return Settings(
            program=self.program,
            listeners=tuple(listeners),
            workers=self.value("workers", workers("auto")),
            foreground=foreground,
            identity=identity,
            keep_bind=self.value("keep-bind", False),
            chroot=self.value("chroot", None),
            pidfile=pidfile,
            control=control,
            sandbox=self.value("sandbox", "on"),
            log=target,
            syslog_socket=path if target == "syslog" else SYSLOG_SOCKET,
            json_path=path if target == "json" else "-",
            metrics=metrics,
            detail=detail,
            detail_number=number,
            limits=Limits(
                records=self.value("records", default.records),
                held=self.value("max-held", default.held),
                share=self.value("max-held-source", default.share),
                interval=self.value("interval", default.interval),
            ),
            lists=asked,
            lookup=lookup,
        )

    def _default_path(self, suffix: str) -> str | None:
        if self.root:
            return f"/var/run/{self.program}{suffix}"
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        if runtime is None or not os.path.isabs(runtime):  # as the XDG specification says
            return None
        return os.path.join(runtime, f"{self.program}{suffix}")

    # Listeners

    def _listeners(self) -> list[Listener]:
        drafts = self.line.listeners or self.files.listeners
        made: list[Listener] = []
        seen: dict[str, str] = {}
        for draft in drafts:
            for listener in self._expand(draft):
                if listener.place in seen:
                    self.mistakes.add(
                        f"{draft.where}: {listener.place} is given twice; once is enough"
                        + ("" if self.line.listeners else f" (also at {seen[listener.place]})"),
                        USAGE if self.line.listeners else CONFIGURATION,
                    )
                seen.setdefault(listener.place, draft.where)
                made.append(listener)
        if len(made) > MOST_LISTENERS:
            self.mistakes.add(f"{len(made)} listeners; at most {MOST_LISTENERS} are possible")
        for listener in made:
            for said in answers.mistakes(listener):
                self.mistakes.add(said, DATA if self.line.listeners else CONFIGURATION)
        return made

    def _expand(self, draft: ListenerDraft) -> list[Listener]:
        """One listener for each of its addresses."""
        persona = self._persona(draft)
        if persona is None:
            return []
        location = self.value("location", "", draft)
        if not location:
            self.mistakes.add(
                f"{draft.where}: location: expected a text, such as 'Somecity, Earth', got nothing",
                CONFIGURATION,
            )
            location = "Earth"
        detail: tuple[Detail, int] | None = draft.values.get("log-connections")
        waits = Waits(**{**self.value("waits", {}), **draft.values.get("waits", {})})
        return [
            Listener(
                address,
                port,
                draft.name,
                location,
                persona,
                self.value("code", persona.code, draft),
                self.value("single-line", False, draft),
                self.value("close", persona.close, draft),
                self.value("protocol", persona.protocol, draft),
                self.value("timewait", True, draft),
                self.value("contact", "", draft),
                detail,
                waits,
                self.value("bind", "plain", draft),
                self.value("proxy-from", (), draft),
                wheres=self._wheres(draft),
            )
            for address, port in draft.places
        ]

    def _wheres(self, draft: ListenerDraft) -> dict[str, str]:
        """Where in the files a listener's values stood; one that is the command line's
        or a default is not there."""
        found = {key: at for key, at in self.files.wheres.items() if key not in self.line.values}
        return {**found, **draft.wheres}

    def _persona(self, draft: ListenerDraft) -> Persona | None:
        default = next(
            (kind for kind in personas.NAMES if self.program.startswith(f"turnaway{kind}")),
            DEFAULT_PERSONA,
        )
        return self._persona_named(
            self.value("persona", default, draft),
            f"{draft.where}: persona" if "persona" in draft.values else self.where("persona"),
            USAGE if self.line.listeners else CONFIGURATION,
        )

    def _persona_named(self, name: str, where: str, status: int) -> Persona | None:
        if name in self.files.personas:
            return self.files.personas[name]
        if name in self.files.misread:
            return None
        if name not in personas.NAMES:
            known = ", ".join({**dict.fromkeys(personas.NAMES), **self.files.personas})
            self.mistakes.add(
                f"{where}: expected one of {known}, got {name!r}{nearest(name, known.split(', '))}",
                status,
            )
            return None
        if name not in self._shipped:
            self._shipped[name] = None
            try:
                self._shipped[name] = personas.shipped(name)
            except Failure as failure:
                for reason in failure.reasons:
                    self.mistakes.add(reason, failure.status)
        return self._shipped[name]

    # Lists

    def _lists(self, listeners: list[Listener]) -> tuple[List, ...]:
        made: list[List] = []
        seen: dict[str, str] = {}
        for draft in self.files.lists:
            if draft.name in seen:
                self.mistakes.add(
                    f"{draft.where}.name: {draft.name} is given twice (also at"
                    f" {seen[draft.name]}); expected one [[list]] with all the files",
                    CONFIGURATION,
                )
            seen.setdefault(draft.name, draft.where)
            persona = None
            if draft.persona is not None:
                persona = self._persona_named(
                    draft.persona, f"{draft.where}.persona", CONFIGURATION
                )
            made.append(
                List(draft.name, draft.files, draft.format, persona, draft.contact, draft.allow)
            )
        if len(made) > MOST_LISTS:
            self.mistakes.add(
                f"{self.files.lists[MOST_LISTS].where}: {len(made)} lists; at most {MOST_LISTS} are"
                " possible",
                CONFIGURATION,
            )
        voices = len(listeners) * (len(made) + 1)
        if made and voices > MOST_VOICES:
            self.mistakes.add(
                f"{self.files.lists[0].where}: {len(made)} lists for {len(listeners)} listeners,"
                f" each with words of its own for each: {voices}; at most {MOST_VOICES} are"
                " possible, so fewer lists or fewer listeners",
                CONFIGURATION,
            )
            return ()
        # What it says is said by every listener, in its own way.
        for listener in listeners:
            for one in made:
                if not one.allow:
                    for said in answers.mistakes(answers.told(listener, one)):
                        self.mistakes.add(said, CONFIGURATION)
        return tuple(made)

    def _lookup(self, asked: tuple[List, ...]) -> Table | None:
        """The addresses of the lists; what is wrong in a file is told with its line."""
        if not asked or len(asked) > MOST_LISTS:
            return None
        found = [lists.read(one.files, one.format) for one in asked]
        for listed in found:
            for said in listed.mistakes:
                self.mistakes.add(said, CONFIGURATION)
        try:
            return Table(found)
        except ValueError as error:
            self.mistakes.add(f"{self.files.lists[0].where}: {error}", CONFIGURATION)
            return None

    # Who the daemon becomes

    def _identity(self) -> Identity | None:
        user: str | None = self.value("user", None)
        group: str | None = self.value("group", None)
        self.asked = user, group
        if self.became is not None:
            # The accounts may be out of reach now, and nobody can become another.
            return self.became.get(self.asked, Identity(f"{user}:{group}", -1, -1))
        if not self.root:
            try:
                mine = pwd.getpwuid(os.geteuid()).pw_name
            except KeyError:
                mine = None
            for key, value, same in (("user", user, mine), ("group", group, None)):
                if value is not None and value != same:
                    self.mistakes.add(
                        f"{self.where(key)} {value}: only root can become somebody else; start as"
                        " root, or leave it out",
                        NO_PERMISSION,
                    )
            return None
        entry = None
        for name in (user,) if user is not None else ("turnaway", "nobody"):
            try:
                entry = pwd.getpwnam(name)
                break
            except (KeyError, ValueError):  # ValueError: not even text
                continue
        if entry is None:
            self.mistakes.add(
                f"{self.where('user')} {user}: no such user; create it, or name another"
                if user is not None
                else "--user: neither turnaway nor nobody exists; create one, or name another",
                NO_USER,
            )
            return None
        gid = entry.pw_gid
        if group is not None:
            try:
                gid = grp.getgrnam(group).gr_gid
            except (KeyError, ValueError):
                self.mistakes.add(
                    f"{self.where('group')} {group}: no such group; create it, or name another",
                    NO_USER,
                )
        if entry.pw_uid == 0 or gid == 0:
            self.mistakes.add(
                f"{self.where('user')} {entry.pw_name}: refusing to serve as root; name a user and"
                " a group without privileges, such as nobody",
                USAGE if {"user", "group"} & self.line.values.keys() else CONFIGURATION,
            )
        return Identity(entry.pw_name, entry.pw_uid, gid)

    def _chroot(self) -> None:
        path: str | None = self.value("chroot", None)
        if path is None or self.became is not None:  # inside it, it cannot be looked for
            return
        where = self.where("chroot")
        if not self.root:
            self.mistakes.add(
                f"{where} {path}: only root can; start as root, or leave it out", NO_PERMISSION
            )
        else:
            try:
                _enterable(path)
            except OSError:
                self.mistakes.add(
                    f"{where} {path}: expected the absolute path of a directory",
                    USAGE if "chroot" in self.line.values else CONFIGURATION,
                )
