"""What a drill says of itself: one in which nothing happened is no proof."""

from tests.drill.history import History
from tests.drill.report import nothing_shown
from tests.drill.sample import RULES, Draft, good


def test_a_drill_in_which_nothing_happened_proves_nothing() -> None:
    """The checker has nothing against it, so the drill has."""
    assert nothing_shown(History(rules=RULES)) == [
        "nobody was told 201",
        "the SMTP server took no mail",
        "nothing was broken",
    ]


def test_refusals_are_no_load() -> None:
    """Who is told 503 all the time loses nothing."""
    draft = Draft()
    draft.call("register", "ada", 1.0, 503)
    assert "nobody was told 201" in nothing_shown(draft.history())


def test_a_drill_that_did_something_is_one() -> None:
    """And planted defects stand for the faults."""
    assert nothing_shown(good().history()) == []
    unbroken = good()
    unbroken.faults.clear()
    assert nothing_shown(unbroken.history()) == ["nothing was broken"]
    assert nothing_shown(unbroken.history(), sabotaged=True) == []
