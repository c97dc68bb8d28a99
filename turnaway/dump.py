"""Settings as a configuration file that reads back as the same.

TOML's own strings are JSON's for the printable ASCII that settings hold; the
standard library reads TOML and does not write it.
"""

import json

from turnaway.settings import Persona, Settings


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
        f"pidfile = {json.dumps(settings.pidfile or 'none')}",
        f"control = {json.dumps(settings.control or 'none')}",
    ]
    if settings.metrics:
        lines.append(f"metrics = {json.dumps(settings.metrics.text)}")
    if settings.identity:
        lines.append(f"user = {json.dumps(settings.identity.user)}")
    if settings.chroot:
        lines.append(f"chroot = {json.dumps(settings.chroot)}")
    for one in settings.listeners:
        lines += [
            "",
            "[[listener]]",
            f"address = {json.dumps(one.place)}",
            f"name = {json.dumps(one.name)}",
            f"location = {json.dumps(one.location)}",
            f"persona = {json.dumps(one.persona.name)}",
            f"code = {one.code}",
            f"protocol = {json.dumps(one.protocol)}",
            f"close = {json.dumps(one.close)}",
            f"single-line = {json.dumps(one.single_line)}",
            f"timewait = {json.dumps(one.timewait)}",
        ]
        if one.contact:
            lines.append(f"contact = {json.dumps(one.contact)}")
        if one.detail:
            lines.append(f"log-connections = {_detail(*one.detail)}")
        waits = one.waits
        lines.append(
            f"waits = {{ park = {waits.park}, drain = {waits.drain}, probe = {waits.probe},"
            f" request = {waits.request}, quit = {waits.quit} }}"
        )
    for persona in {one.persona.name: one.persona for one in settings.listeners}.values():
        lines += ["", *_persona(persona)]
    return "\n".join(lines) + "\n"


def _log(settings: Settings) -> str:
    path = {"syslog": settings.syslog_socket, "json": settings.json_path}.get(settings.log)
    return json.dumps(f"{settings.log}:{path}" if path else settings.log)


def _detail(how: str, number: int) -> str:
    return json.dumps(f"{how}:{number}" if number else how)


def _persona(persona: Persona) -> list[str]:
    name = json.dumps(persona.name)
    lines = [
        f"[personas.{name}]",
        f"code = {persona.code}",
        f"close = {json.dumps(persona.close)}",
        f"protocol = {json.dumps(persona.protocol)}",
        f"single = {json.dumps(persona.single.text)}",
        "lines = [",
        *(f"    {json.dumps(line.text)}," for line in persona.lines),
        "]",
        "",
        f"[personas.{name}.http]",
        f"title = {json.dumps(persona.page.title.text)}",
        "text = [",
        *(f"    {json.dumps(line.text)}," for line in persona.page.text),
        "]",
    ]
    for one in persona.refusals:
        lines += [
            "",
            f"[personas.{name}.text.{one.kind}]",
            f"ports = {json.dumps(list(one.ports))}",
            f"line = {json.dumps(one.line.text)}",
        ]
    return lines
