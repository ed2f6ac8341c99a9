"""The page of historical events: what is told of each, marks by descent, whole and offline."""

import json
import re

import pytest

from tnav.evaluate.events import load_event
from tnav.evaluate.events_fly import Ending, EventResult, Flown, Heard, How
from tnav.records import FaultKind
from tnav.report.events import write_events_page

SILENT = Heard((), FaultKind.HEALTHY, *([None] * 8))
NOISY = Heard(
    (FaultKind.VISION_ABSENT, FaultKind.ALTIMETER_NOISE), FaultKind.ALTIMETER_NOISE,
    0.1, 455.5, 475.5, 475.5, 6079.0, 109.8, 2823.0, 25.7,
)  # fmt: skip
SOFT = Ending(How.SOFT, 1.5, 1.5, 4.0, 30.0)
CRASHED = Ending(How.CRASHED, 18.0, 17.9, 20.0, 40.0)
AIR = Ending(How.AIR, None, None, None, 0.0)


def result(name: str, heard: Heard, then: Flown | None) -> EventResult:
    flown = Flown((SOFT, SOFT), (heard, heard))
    return EventResult(load_event(name), 0, "cpu", then, flown, Flown((SOFT,) * 2, (SILENT,) * 2))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    results = [
        result("im2_athena", NOISY, Flown((CRASHED, AIR), ())),
        result("vikram", NOISY, Flown((SOFT, SOFT), ())),
        result("nominal_slim", SILENT, None),
    ]
    return write_events_page(tmp_path_factory.mktemp("events"), results).read_text()


def test_each_event_says_what_was_expected_said_and_done(page: str) -> None:
    articles = re.findall(r"<article.*?</article>", page, re.S)
    athena, vikram, slim = (" ".join(re.sub(r"<[^>]+>", " ", a).split()) for a in articles)
    assert "IM-2 Athena 2025-03-06 ✓ as it must" in athena
    assert "Expected verdict altimeter noise or undecided" in athena
    assert "Said, of each descent 2 vision absent, then altimeter noise" in athena
    assert "Least margin to the point of no return 2823 m, 25.7 s" in athena
    assert "As flown then 1 crashed, 1 in the air; to 18.0 m/s" in athena
    assert "height from which on 30,000 m B press quoting Intuitive Machines" in athena
    assert "✕ not as it must" in vikram  # nothing may be named there
    assert "As flown then" not in slim
    assert "Alert after" not in slim


def test_each_descent_that_came_down_is_a_mark(page: str) -> None:
    text = re.search(r"<script type=.application/json.[^>]*>(.*?)</script>", page, re.S)
    assert text is not None
    then, now = json.loads(text[1])["data"]
    assert then["x"] == [18.0, 1.5, 1.5]  # one is in the air still
    assert then["y"][0] == "IM-2 Athena"
    assert now["x"] == [1.5] * 6
    assert "crashed at 18.0 m/s, 40 kg left" in then["text"]


def test_the_page_asks_nobody(page: str) -> None:
    own = page[: page.index("<script>")]
    assert "default-src 'none'" in own
    assert not re.search(r"(src|href)=.https?:", own)
