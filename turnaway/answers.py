"""Everything a listener may say, as bytes, for a moment; and how it behaves.

Owns: which of the words of the loop a listener uses, by its protocol and close
policy, and where they come from: banner.py for SMTP and text, page.py for HTTP,
and here the fixed octets of TLS and SOCKS.
"""

from dataclasses import dataclass, replace

from turnaway import banner, page
from turnaway.settings import List, Listener

# A fatal alert, access_denied(49): RFC 8446 5.1, 6.  It means the certificate
# was fine and access is not granted, and every TLS library shows it by name.
TLS_ALERT = bytes.fromhex("15 03 03 00 02 02 31")
# No acceptable methods: RFC 1928 3; request rejected: SOCKS4.
SOCKS5_REFUSAL = bytes.fromhex("05 FF")
SOCKS4_REFUSAL = bytes.fromhex("00 5B 00 00 00 00 00 00")


@dataclass(frozen=True)
class Behaviour:
    """What the loop does with a listener's connections; see Board.behave()."""

    manner: str
    expected: str
    blind: str
    lingers: str
    resets: bool


def behaviour(listener: Listener) -> Behaviour:
    lingers = "drain" if listener.close == "drain" else "park"
    resets = listener.close == "reset"
    if listener.protocol in ("http", "tls", "socks", "auto"):
        expected = "any" if listener.protocol == "auto" else listener.protocol
        blind = {"any": "banner", "http": "plain", "tls": "tls", "socks": "socks5"}[expected]
        return Behaviour("ask", expected, blind, lingers, resets)
    return Behaviour(listener.close, "any", "banner", lingers, resets)


def told(listener: Listener, listed: List) -> Listener:
    """The listener as it speaks to who is on a list: in the list's words, with its
    contact.  How it behaves, and in which protocol, stays its own."""
    persona = listed.persona or listener.persona
    return replace(
        listener,
        persona=persona,
        code=persona.code if listed.persona else listener.code,
        contact=listed.contact or listener.contact,
        listed=listed.name,
    )


def groups(listener: Listener, lists: tuple[List, ...]) -> list[Listener | None]:
    """The listener as it speaks to who is on no list, and to who is on each; None for
    an allow list, to whose clients it says nothing."""
    return [listener, *(None if one.allow else told(listener, one) for one in lists)]


def render(listener: Listener, moment: float) -> dict[str, tuple[bytes, int]]:
    """{words: (octets, length of an HTTP head or 0)}: what the listener can say."""
    date = banner.date_text(moment)
    said: dict[str, tuple[bytes, int]] = {}
    if listener.protocol.startswith("text"):
        said["banner"] = banner.refusal(listener, date), 0
    elif listener.protocol in ("smtp", "auto"):
        said["banner"] = banner.render(listener, date), 0
    if listener.close == "quit":
        said |= {words: (octets, 0) for words, octets in banner.dialogue(listener).items()}
    if listener.protocol in ("http", "auto"):
        said |= page.render(listener, moment, date)
    if listener.protocol in ("tls", "auto"):
        said["tls"] = TLS_ALERT, 0
    if listener.protocol in ("socks", "auto"):
        said["socks5"] = SOCKS5_REFUSAL, 0
        said["socks4"] = SOCKS4_REFUSAL, 0
    return said


def codes(listener: Listener) -> dict[str, tuple[str, str]]:
    """{words: (protocol, code)} for the log: what a line says of each answer."""
    kind = (
        listener.refusal.kind if listener.protocol.startswith("text") and listener.refusal else ""
    )
    return {
        "banner": (kind or "smtp", "-" if kind else str(listener.code)),
        "wrong": ("smtp", "503"),
        "bye": ("smtp", "221"),
        "late": ("smtp", "421"),
        "plain": ("http", "403"),
        "html": ("http", "403"),
        "bad": ("http", "400"),
        "timeout": ("http", "408"),
        "tls": ("tls", "49"),
        "socks5": ("socks5", "255"),
        "socks4": ("socks4", "91"),
    }


def mistakes(listener: Listener) -> list[str]:
    """Why this listener cannot say what it should, each with file and line."""
    found = []
    if listener.protocol.startswith("text") and listener.refusal is None:
        known = ", ".join(
            f"text:{one.kind} (port {', '.join(map(str, one.ports))})"
            for one in listener.persona.refusals
        )
        found.append(
            f"{listener.place}: persona {listener.persona.name} has no words for"
            f" {listener.protocol} there; it has {known or 'none'}"
        )
    elif listener.protocol in ("smtp", "auto") or listener.protocol.startswith("text"):
        found += banner.mistakes(listener)
    if listener.protocol in ("http", "auto"):
        found += page.mistakes(listener)
    if listener.close == "quit" and listener.protocol != "smtp":
        found.append(
            f"{listener.place}: close policy quit is a dialogue of SMTP; expected protocol smtp,"
            f" got {listener.protocol}"
        )
    return found
