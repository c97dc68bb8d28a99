"""docs/reliability.md says what was measured, and leaves no fault out."""

import re
from pathlib import Path

import pytest

from bench import reliability
from tests.faults.catalogue import FAULTS

HERE = Path(__file__).parent


def test_the_page_is_what_its_figures_make() -> None:
    page = reliability.PAGE.read_text()
    assert page == reliability.rendered(page, reliability.figures())
    assert set(reliability.figures()) <= set(reliability.COLUMNS)


def test_the_page_and_the_list_of_faults_agree() -> None:
    """`make faults` writes the page."""
    rows = reliability.figures()["faults"]["rows"]
    assert [row["fault"] for row in rows] == list(FAULTS)
    assert {row["fault"]: row["injected by"] for row in rows} == FAULTS


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_a_test(fault: str) -> None:
    sources = (path.read_text() for path in HERE.glob("test_*.py") if path != Path(__file__))
    assert sum(len(re.findall(f'"{re.escape(fault)}"', text)) for text in sources) == 1


def test_a_row_that_lacks_a_column_is_refused() -> None:
    with pytest.raises(ValueError, match="floods: expected"):
        reliability.record("floods", "make floods", [{"flood": "SYN"}])
