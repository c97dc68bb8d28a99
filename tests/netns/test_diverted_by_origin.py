"""The whole of it: a firewall diverts by origin, and a real mail client is turned away.

Owns: rules of nftables as an administrator would write them, on the MX of
mail.py, and what its clients then meet.
"""

from __future__ import annotations

import re

import pytest
from namespaces import ended

from tests.netns.mail import BOTH, FOUR, NAME, SIX, Family, Mail, delivered, turned_away

# A table of our own, which may be loaded again at any time: what is ours is
# flushed and filled, lists and counters stay.  SYN only, so what is open stays
# open; `dnat to :PORT` leaves the called address readable; the guard keeps
# strangers from the port; what is refused is forgotten by conntrack in seconds.
RULES = """
table inet turnaway {
	set mx4 { type ipv4_addr; }
	set mx6 { type ipv6_addr; }
	set allow4 { type ipv4_addr; flags interval; }
	set allow6 { type ipv6_addr; flags interval; }
	set refuse4 { type ipv4_addr; flags interval; }
	set refuse6 { type ipv6_addr; flags interval; }
	set auto4 { type ipv4_addr; flags timeout; }
	set auto6 { type ipv6_addr; flags timeout; }
	counter refused4 { }
	counter refused6 { }
	counter auto_refused4 { }
	counter auto_refused6 { }
	ct timeout goaway4 {
		protocol tcp
		l3proto ip
		policy = { syn_sent : 20, syn_recv : 20, established : 120, fin_wait : 10, close_wait : 10, last_ack : 10, time_wait : 5, close : 2 }
	}
	ct timeout goaway6 {
		protocol tcp
		l3proto ip6
		policy = { syn_sent : 20, syn_recv : 20, established : 120, fin_wait : 10, close_wait : 10, last_ack : 10, time_wait : 5, close : 2 }
	}
	chain short_lived { type filter hook prerouting priority mangle; policy accept; }
	chain divert { type nat hook prerouting priority dstnat - 5; policy accept; }
	chain guard { type filter hook input priority filter - 5; policy accept; }
}
flush set inet turnaway mx4
flush set inet turnaway mx6
flush set inet turnaway allow4
flush set inet turnaway allow6
flush chain inet turnaway short_lived
flush chain inet turnaway divert
flush chain inet turnaway guard
add element inet turnaway mx4 { 198.51.100.25, 198.51.100.26 }
add element inet turnaway mx6 { 2001:db8:25::25, 2001:db8:25::26 }
add element inet turnaway allow4 { 127.0.0.0/8, 198.51.100.0/24 }
add element inet turnaway allow6 { ::1, fe80::/10, 2001:db8:25::/64 }
table inet turnaway {
	chain short_lived {
		tcp dport 25 tcp flags syn / fin,syn,rst,ack ip  daddr @mx4 ip  saddr @refuse4 ct timeout set "goaway4"
		tcp dport 25 tcp flags syn / fin,syn,rst,ack ip6 daddr @mx6 ip6 saddr @refuse6 ct timeout set "goaway6"
		tcp dport 25 tcp flags syn / fin,syn,rst,ack ip  daddr @mx4 ip  saddr @auto4 ct timeout set "goaway4"
		tcp dport 25 tcp flags syn / fin,syn,rst,ack ip6 daddr @mx6 ip6 saddr @auto6 ct timeout set "goaway6"
	}
	chain divert {
		tcp dport != 25 return
		tcp flags & (fin | syn | rst | ack) != syn return
		ip  daddr != @mx4 return
		ip6 daddr != @mx6 return
		ip  saddr @allow4 return
		ip6 saddr @allow6 return
		ip  saddr @refuse4 tcp dport 25 counter name refused4 dnat to :2525
		ip6 saddr @refuse6 tcp dport 25 counter name refused6 dnat to :2525
		ip  saddr @auto4 tcp dport 25 counter name auto_refused4 dnat to :2525
		ip6 saddr @auto6 tcp dport 25 counter name auto_refused6 dnat to :2525
	}
	chain guard {
		tcp dport 2525 iifname != "lo" ct status & dnat == 0 reject with tcp reset
	}
}
"""


@BOTH
def test_listed_client_is_told_why_and_delivers_nothing(mail: Mail, family: Family) -> None:
    mail.mx.firewall(RULES)
    mail.refuse(family)
    raised = turned_away(mail, family.listed, family.called, port=40_025)
    assert raised.startswith(f"smtplib.SMTPConnectError: (554, b'{NAME} ESMTP TurnAway v")
    assert "forwarding of viri and/or bogus virus reports and/or bounces" in raised
    assert raised.endswith("while the ACTUAL forger is still connected.  Closing connection.')")
    assert mail.letters() == []
    assert mail.mx.counted(f"refused{family.name}") == 1
    # From the true client to the address and port it called, by way of the
    # port where the firewall sent it.
    from_ = rf"from=\[{re.escape(family.listed)}\]:40025"
    called = re.escape(family.called)
    to = rf"to=\[{called}\]:25 via=\[{called}\]:2525"
    line = mail.daemon.syslog.wait_for("turned away ")
    assert re.search(
        rf"turned away {from_} {to} as={re.escape(NAME)} persona=blocked code=554 outcome=\w+$",
        line,
    ), line


@BOTH
def test_unlisted_client_reaches_the_mail_server(mail: Mail, family: Family) -> None:
    """Also while others are listed, and the daemon never hears of it."""
    mail.mx.firewall(RULES)
    mail.refuse(FOUR)
    mail.refuse(SIX)
    delivered(mail, family.unlisted, family.called)
    assert mail.daemon.counters().get("accepted", 0) == 0
    assert mail.mx.counted(f"refused{family.name}") == 0


@BOTH
def test_listed_and_unlisted_call_by_turns(mail: Mail, family: Family) -> None:
    mail.mx.firewall(RULES)
    mail.refuse(family)
    for _ in range(3):
        assert "(554, b'" in turned_away(mail, family.listed, family.called)
        delivered(mail, family.unlisted, family.called)
    assert mail.daemon.counters()["accepted"] == 3


@BOTH
@pytest.mark.parametrize("when", ["listed", "loaded"])
def test_open_session_survives_its_listing(mail: Mail, family: Family, when: str) -> None:
    """Open before the origin is listed, or before the rules themselves are loaded.

    In the second case conntrack meets the session in its middle and takes it
    for a new one; only the match of the SYN saves it from a reset.
    """
    if when == "listed":
        mail.mx.firewall(RULES)
    with ended(mail.client(family.listed, family.called)) as early:
        assert early.stdout is not None
        assert early.stdout.readline() == "open\n"
        if when == "loaded":
            mail.mx.firewall(RULES)
        mail.refuse(family)
        assert "(554, b'" in turned_away(mail, family.listed, family.called)
        said, complained = early.communicate("go on\n", timeout=20)
    assert (early.returncode, said) == (0, "delivered\n"), complained
    assert mail.letters() == [f"Subject: hello\r\n\r\nfrom {family.listed}\r\n"]


@BOTH
def test_delisted_client_reaches_the_mail_server_again(mail: Mail, family: Family) -> None:
    mail.mx.firewall(RULES)
    mail.refuse(family)
    assert "(554, b'" in turned_away(mail, family.listed, family.called)
    mail.element("delete", f"refuse{family.name}", family.origin)
    delivered(mail, family.listed, family.called)


@BOTH
def test_banned_client_is_turned_away_until_its_pardon(mail: Mail, family: Family) -> None:
    """A single address with a lifetime, as fail2ban and CrowdSec list them."""
    mail.mx.firewall(RULES)
    mail.element("add", f"auto{family.name}", f"{family.listed} timeout 1h")
    assert "(554, b'" in turned_away(mail, family.listed, family.called)
    assert mail.mx.counted(f"auto_refused{family.name}") == 1
    mail.element("delete", f"auto{family.name}", family.listed)
    delivered(mail, family.listed, family.called)


@BOTH
def test_rules_loaded_again_keep_the_list(mail: Mail, family: Family) -> None:
    """Also under an open session of a listed origin, which they must not touch."""
    with ended(mail.client(family.listed, family.called)) as early:
        assert early.stdout is not None
        assert early.stdout.readline() == "open\n"
        mail.mx.firewall(RULES)
        mail.refuse(family)
        for _ in range(2):
            mail.mx.firewall(RULES)
            assert "(554, b'" in turned_away(mail, family.listed, family.called)
        said, complained = early.communicate("go on\n", timeout=20)
    assert (early.returncode, said) == (0, "delivered\n"), complained
    assert mail.mx.counted(f"refused{family.name}") == 2


@BOTH
def test_stranger_cannot_call_the_diversion_port(mail: Mail, family: Family) -> None:
    """Listed or not: port 2525 is for what the firewall sends there."""
    mail.mx.firewall(RULES)
    mail.refuse(family)
    for own in (family.listed, family.unlisted):
        with pytest.raises(ConnectionRefusedError):
            mail.clients.connect(family.called, 2525, source=own)
    assert mail.daemon.counters().get("accepted", 0) == 0


@BOTH
def test_daemon_down_is_a_refusal_not_a_way_in(mail: Mail, family: Family) -> None:
    """Fail closed: without the daemon the listed still do not reach the mail server."""
    mail.mx.firewall(RULES)
    mail.refuse(family)
    assert mail.daemon.stop() == 0
    raised = turned_away(mail, family.listed, family.called)
    assert raised.startswith("ConnectionRefusedError: ")
    delivered(mail, family.unlisted, family.called)
