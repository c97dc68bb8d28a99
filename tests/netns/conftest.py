"""The fixture of the tests here; what it is made of stands in mail.py."""

from collections.abc import Iterator

import pytest
from running import Syslog

from tests.netns.mail import Mail, mail_lab


@pytest.fixture
def mail(syslog: Syslog) -> Iterator[Mail]:
    with mail_lab(syslog) as made:
        yield made
