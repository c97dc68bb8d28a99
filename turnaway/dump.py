"""Settings as a configuration file that reads back as the same.

The standard library reads TOML and does not write it.  TOML's strings are
JSON's, but for DEL, and for what JSON writes as two halves of a surrogate.
"""

import grp
import json

from turnaway.settings import List, Persona, Settings


def dump(settings: Settings) -> str:
    lines = [
        f"# The settings in force of {settings.program}.",
        f"workers = {settings.workers}",
        f"log = {_log(settings)}",
        f"log-connections = {_detail(settings.detail, settings.detail_number)}",
        f"interval = {int(settings.limits.interval)}",
        f"max-held = {settings.limits.held}",
        f"max-held-source = {settings.limits.share}",
        f"records = {settings.limits.records}",
        f"pidfile = {_quoted(settings.pidfile or 'none')}",
        f"control = {_quoted(settings.control or 'none')}",
        f"sandbox = {_quoted(settings.sandbox)}",
        f"keep-bind = {_truth(settings.keep_bind)}",
    ]
    if settings.metrics:
        lines.append(f"metrics = {_quoted(settings.metrics.text)}")
    if settings.identity:
        lines.append(f"user = {_quoted(settings.identity.user)}")
        try:
            lines.append(f"group = {_quoted(grp.getgrgid(settings.identity.gid).gr_name)}")
        except KeyError:
            pass  # one without a name can only be the user's own
    if settings.chroot:
        lines.append(f"chroot = {_quoted(settings.chroot)}")
    for one in settings.listeners:
        lines += [
            "",
            "[[listener]]",
            f"address = {_quoted(one.place)}",
            f"name = {_quoted(one.name)}",
            f"location = {_quoted(one.location)}",
            f"persona = {_quoted(one.persona.name)}",
            f"code = {one.code}",
            f"protocol = {_quoted(one.protocol)}",
            f"close = {_quoted(one.close)}",
            f"single-line = {_truth(one.single_line)}",
            f"timewait = {_truth(one.timewait)}",
            f"bind = {_quoted(one.bind)}",
            f"proxy-from = [{', '.join(map(_quoted, one.proxy_from))}]",
        ]
        if one.contact:
            lines.append(f"contact = {_quoted(one.contact)}")
        if one.detail:
            lines.append(f"log-connections = {_detail(*one.detail)}")
        waits = one.waits
        lines.append(
            f"waits = {{ park = {waits.park}, drain = {waits.drain}, probe = {waits.probe},"
            f" request = {waits.request}, quit = {waits.quit}, proxy = {waits.proxy} }}"
        )
    for listed in settings.lists:
        lines += ["", *_list(listed)]
    spoken = [one.persona for one in settings.listeners]
    spoken += [one.persona for one in settings.lists if one.persona]
    for persona in {one.name: one for one in spoken}.values():
        lines += ["", *_persona(persona)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _log(settings: Settings) -> str:
    path = {"syslog": settings.syslog_socket, "json": settings.json_path}.get(settings.log)
    return _quoted(f"{settings.log}:{path}" if path else settings.log)


def _detail(how: str, number: int) -> str:
    return _quoted(f"{how}:{number}" if number else how)


def _list(listed: List) -> list[str]:
    lines = [
        "[[list]]",
        f"name = {_quoted(listed.name)}",
        f"files = [{', '.join(map(_quoted, listed.files))}]",
    ]
    if listed.format:
        lines.append(f"format = {_quoted(listed.format)}")
    if listed.persona:
        lines.append(f"persona = {_quoted(listed.persona.name)}")
    if listed.contact:
        lines.append(f"contact = {_quoted(listed.contact)}")
    if listed.allow:
        lines.append("allow = true")
    return lines


def _persona(persona: Persona) -> list[str]:
    name = _quoted(persona.name)
    lines = [
        f"[personas.{name}]",
        f"code = {persona.code}",
        f"close = {_quoted(persona.close)}",
        f"protocol = {_quoted(persona.protocol)}",
        f"single = {_quoted(persona.single.text)}",
        "lines = [",
        *(f"    {_quoted(line.text)}," for line in persona.lines),
        "]",
        "",
        f"[personas.{name}.http]",
        f"title = {_quoted(persona.page.title.text)}",
        "text = [",
        *(f"    {_quoted(line.text)}," for line in persona.page.text),
        "]",
    ]
    for one in persona.refusals:
        lines += [
            "",
            f"[personas.{name}.text.{one.kind}]",
            f"ports = {list(one.ports)}",
            f"line = {_quoted(one.line.text)}",
        ]
    return lines
