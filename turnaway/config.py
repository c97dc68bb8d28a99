"""The configuration files -> a Draft: /etc/turnaway/turnaway.toml and its drop-ins.

Everything that an option can say, per listener where that makes sense, and
personas of one's own.  All mistakes of all files are told together, each as
`file:line: listener[2].port: expected 1..65535, got "25x"`.  What the values
mean together is draft.py's business.

A drop-in is FILE.d/*.toml, read after FILE in the order of names: its top-level
keys and personas replace earlier ones, its listeners and lists are added.
"""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from turnaway import banner, lists, personas, values
from turnaway.draft import Draft, ListDraft, ListenerDraft, Mistakes
from turnaway.exits import CONFIGURATION, Failure
from turnaway.settings import Persona
from turnaway.tables import Document, Table, octets_of, shown

T = TypeVar("T")

# FreeBSD and OpenBSD keep what is not of the base system under /usr/local.
DEFAULT = Path("/etc/turnaway/turnaway.toml")

# Time limits of held sockets in seconds; the keys of [waits].
WAITS = ("park", "drain", "probe", "request", "quit", "proxy")


def files(path: Path) -> list[Path]:
    """The file and its drop-ins, in the order they are read; names that begin with a
    dot are an editor's."""
    found = path.with_name(path.name + ".d").glob("*.toml")
    return [path, *sorted(one for one in found if one.name[0] != ".")]


def read(path: Path, mistakes: Mistakes, root: bool) -> Draft:
    """Every file as one draft; what is wrong with them goes to `mistakes`.

    `root`: we were started as root, whoever we are by now, so that nobody else may
    write what we read.
    """
    draft = Draft()
    _guard(path.with_name(path.name + ".d"), mistakes, root)
    for one in files(path):
        try:
            draft.sources.append(str(one))
            octets = octets_of(one, CONFIGURATION, root)
            document = Document(str(one), octets, CONFIGURATION)
            _File(document, draft, one.parent, mistakes, root)
            document.finish()
        except Failure as failure:
            for reason in failure.reasons:
                mistakes.add(reason, failure.status)
    return draft


def _guard(folder: Path, mistakes: Mistakes, root: bool) -> None:
    """Whoever may write to the folder of drop-ins could add one."""
    try:
        mode = folder.stat().st_mode
    except OSError:
        return
    if root and mode & (stat.S_IWGRP | stat.S_IWOTH):
        mistakes.add(
            f"{folder}: others than its owner may write to it, so root does not read it;"
            f" chmod go-w {folder}",
            CONFIGURATION,
        )


class _File:
    """One file being read into the draft."""

    def __init__(
        self, document: Document, draft: Draft, folder: Path, mistakes: Mistakes, root: bool
    ) -> None:
        self.root = root
        self.document = document
        self.draft = draft
        self.folder = folder
        self.mistakes = mistakes
        top = document.root
        for key, value in self._process(top).items():
            draft.put(key, value, f"{top.where(key)}: {key}")
        for key, value in self._message(top).items():
            draft.put(key, value, f"{top.where(key)}: {key}")
        if (waits := top.table("waits")) is not None:
            draft.put("waits", self._waits(waits), top.where("waits"))
        if (own := top.table("personas")) is not None:
            for name in own.data:
                try:
                    values.persona_name(name)
                except ValueError as error:
                    own.wrong(name, f"as its name {error}")
                if (table := own.table(name)) is not None:
                    persona = self._persona(name, table)
                    if persona is not None:
                        draft.personas[name] = persona
                    else:
                        draft.misread.add(name)
        for table in top.array("listener"):
            if (listener := self._listener(table)) is not None:
                draft.listeners.append(listener)
        for table in top.array("list"):
            if (one := self._list(table)) is not None:
                draft.lists.append(one)

    def _text(self, table: Table, key: str, check: Callable[[str], T]) -> T | None:
        text = table.string(key)
        if text is None:
            return None
        try:
            return check(text)
        except ValueError as error:
            table.wrong(key, str(error))
            return None

    def _process(self, table: Table) -> dict[str, Any]:
        """What is said once for the whole process."""
        found: dict[str, Any] = {
            "user": table.string("user"),
            "group": table.string("group"),
            "keep-bind": table.boolean("keep-bind"),
            "chroot": self._text(table, "chroot", values.absolute),
            "log": self._text(table, "log", values.log),
            "metrics": self._text(table, "metrics", values.metrics),
            "sandbox": self._text(table, "sandbox", values.sandbox),
            "interval": table.number("interval", 1, 86400),
            "max-held": table.number("max-held", 0, 1 << 17),
            "max-held-source": table.number("max-held-source", 1, 1 << 17),
            "records": table.number("records", 64, 1 << 20),
        }
        for key in ("pidfile", "control"):
            if (text := table.string(key)) is not None:
                if text == "none":
                    found[key] = None
                    table.asked.add(key)
                    self.draft.put(key, None, f"{table.where(key)}: {key}")
                    continue
                try:
                    found[key] = values.absolute(text)
                except ValueError as error:
                    table.wrong(key, str(error))
        table.asked.add("workers")  # for the hints, too
        if table.data.get("workers") == "auto":
            found["workers"] = values.workers("auto")
        elif "workers" in table.data:
            found["workers"] = table.number("workers", 1, values.MOST_WORKERS)
        return {key: value for key, value in found.items() if value is not None}

    def _message(self, table: Table) -> dict[str, Any]:
        """What may be said at the top, for all, and again for a listener."""
        found: dict[str, Any] = {
            "location": self._text(table, "location", values.printable),
            "contact": self._text(table, "contact", values.printable),
            "persona": table.string("persona"),
            "protocol": self._text(table, "protocol", values.protocol),
            "close": self._text(table, "close", values.close),
            "single-line": table.boolean("single-line"),
            "timewait": table.boolean("timewait"),
            "log-connections": self._text(table, "log-connections", values.detail),
            "bind": self._text(table, "bind", values.bind),
            "proxy-from": self._proxies(table),
        }
        code = table.number("code", 400, 599)
        if code is not None:
            if banner.refuses(code):
                found["code"] = code
            else:
                table.wrong("code", f"expected 4yz or 5yz (RFC 5321 4.2), got {code}")
        return {key: value for key, value in found.items() if value is not None}

    def _proxies(self, table: Table) -> tuple[str, ...] | None:
        texts = table.list_of("proxy-from", str, "network", empty=True)
        if texts is None:
            return None
        try:
            return values.proxies(texts)
        except ValueError as error:
            table.wrong("proxy-from", str(error))
            return None

    def _waits(self, table: Table) -> dict[str, float]:
        found = {}
        for key in WAITS:
            expected = "seconds, 0.01..600"
            value = table.take(key, (int, float), expected, required=False)
            if value is None:
                continue
            if not 0.01 <= value <= 600:
                table.wrong(key, f"expected {expected}, got {shown(value)}")
            else:
                found[key] = float(value)
        return found

    def _persona(self, name: str, table: Table) -> Persona | None:
        """Inline, or the name of a file beside this one."""
        if "file" not in table.data:
            return personas.from_table(name, table)
        file = table.string("file")
        if file is None:
            return None
        try:
            self.draft.sources.append(str(self.folder / file))
            return personas.read(self.folder / file, name, self.root)
        except Failure as failure:
            for reason in failure.reasons:
                self.mistakes.add(reason, CONFIGURATION)
            return None

    def _listener(self, table: Table) -> ListenerDraft | None:
        where = self.document.where(table.path)
        port = table.number("port", 1, 65535)
        name = self._text(table, "name", values.host_name)
        if "name" not in table.data:
            table.wrong("name", "expected a host name, such as mx.example.com, got nothing")
        places = []
        if isinstance(table.data.get("address"), str):
            texts = [table.string("address")]
        else:
            texts = table.list_of("address", str, "string", required=True) or []
        for text in texts:
            try:
                address, given = values.place(text or "")
            except ValueError as error:
                table.wrong("address", str(error))
                continue
            explicit = ("]:" if ":" in address else ":") in (text or "")
            places.append((address, given if explicit or port is None else port))
        own = self._message(table)
        if (waits := table.table("waits")) is not None:
            own["waits"] = self._waits(waits)
        if name is None:
            return None
        number = table.path[-1]
        wheres = {
            key: f"{table.where(key)}: listener[{number}].{key}"
            for key in ("address", "name", *own)
            if key in table.data
        }
        return ListenerDraft(f"{where}: listener[{number}]", places, name, own, wheres)

    def _list(self, table: Table) -> ListDraft | None:
        where = self.document.where(table.path)
        name = self._text(table, "name", values.list_name)
        if "name" not in table.data:
            table.wrong("name", "expected a name, such as spamhaus-drop, got nothing")
        files = table.list_of("files", str, "path", required=True)
        for text in files or ():
            if not text or "\0" in text:
                table.wrong("files", f"expected the path of a file, got {shown(text)}")
                files = None
        format = table.choice("format", tuple(lists.FORMATS))
        allow = table.boolean("allow") or False
        persona = table.string("persona")
        contact = self._text(table, "contact", values.printable)
        for key, value in (("persona", persona), ("contact", contact)):
            if allow and value is not None:
                table.wrong(key, "an allow list answers nobody; leave it out")
        if name is None or files is None:
            return None
        paths = tuple(str(self.folder.absolute() / text) for text in files)
        number = table.path[-1]
        return ListDraft(
            f"{where}: list[{number}]", name, paths, format, persona, contact or "", allow
        )
