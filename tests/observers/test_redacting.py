"""What is taken out of the audit log before it is written."""

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.observers.redacting import NAMED, WITHHELD, Redaction, check_rule

ALL = Redaction(NAMED)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Write to Ann.Lee+x@mail.example.org today.", "Write to [email] today."),
        ("Call +49 (30) 123-45 67 now", "Call [phone] now"),
        ("Call 030/1234567.", "Call [phone]."),
        ("Pay with 4111 1111 1111 1111 please", "Pay with [card] please"),
        ("from 192.168.0.17, and 2001:db8::8a2e:370:7334 too", "from [ip], and [ip] too"),
        ("the key sk-abcdefghijklmnopqrstuvwx is mine", "the key [key] is mine"),
        ("Authorization: Bearer abcdefghijklmnop1234==", "Authorization: Bearer [key]"),
        ("AKIAABCDEFGHIJKLMNOP", "[key]"),
        (
            "token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl, and so on",
            "token [key], and so on",
        ),
        ("a JWE: eyJhbGciOiJkaXIifQ..aXY_aXY.dGV4dA.dGFn.", "a JWE: [key]."),
        ("x" * 70 + "@mail.example.org is long", "[email] is long"),
    ],
)
def test_what_is_private_is_taken_out(text: str, written: str) -> None:
    assert ALL(text) == written


@pytest.mark.parametrize(
    "text",
    [
        "She has 1,234 shells and gives away 56, so 1178 are left.",
        "In 2026 version 3.11.7 came out.",
        "It is 12:30:45 now, and 3 / 4 = 0.75.",
        "The ratio is 16:9.",
        "f(x) = x^2 + 3x - 10",
    ],
)
def test_numbers_of_other_kinds_stay(text: str) -> None:
    assert ALL(text) == text


def test_a_number_that_is_no_card_is_not_called_one() -> None:
    assert Redaction(["cards"])("4111 1111 1111 1112") == "4111 1111 1111 1112"


def test_rules_of_the_operators_own_come_in_their_order() -> None:
    redact = Redaction([("project (\\w+)", "project [\\1?]"), ("blue", "x")])
    assert redact("project bluebird") == "project [xbird?]"


@given(st.text(), st.emails(domains=st.just("mail.example.org")), st.text())
def test_no_address_survives_whatever_stands_around_it(
    before: str, address: str, after: str
) -> None:
    written = ALL(f"{before} {address} {after}")
    assert "@mail.example.org" not in written or "@mail.example.org" in before + after


@given(st.text())
def test_the_same_text_always_becomes_the_same(text: str) -> None:
    assert ALL(text) == ALL(text)


SLOW = r"(a|aa)+$"  # for this text it would need years
HOSTILE = f"secret {'a' * 5000}!"


@pytest.mark.anyio
async def test_a_pattern_that_never_ends_is_stopped_and_lets_others_work_meanwhile(
    caplog: pytest.LogCaptureFixture,
) -> None:
    redaction = Redaction(["emails", ("fine", "good"), (SLOW, "x")], seconds=0.2)

    def of_a_record() -> tuple[list[str], int]:
        redact = redaction.record()
        return [redact(text) for text in ("fine.", HOSTILE, "fine.")], redact.withheld

    for _ in range(2):
        redacting = asyncio.create_task(asyncio.to_thread(of_a_record))
        turns = 0
        while not redacting.done():
            await asyncio.sleep(0)
            turns += 1
        assert await redacting == (["good.", WITHHELD, "good."], 1)
        assert turns > 100  # with the interpreter's lock held there would be next to none
    (told,) = caplog.records
    assert told.levelno == logging.ERROR
    assert "rule 3" in told.getMessage()
    assert "aaa" not in told.getMessage()


def test_a_text_full_of_beginnings_is_read_once() -> None:
    redact = ALL.record()
    redact("eyJ-" * 250_000)
    assert redact.withheld == 0


@pytest.mark.parametrize(
    ("find", "replace"),
    [("(", ""), ("a", "\\1"), ("(a)", "\\2"), ("(?P<x>a)", "\\g<y>"), ("a", "\\q"), (r"\L<x>", "")],
)
def test_what_cannot_be_used_is_told_before_anything_is_found(find: str, replace: str) -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        check_rule(find, replace)


@pytest.mark.parametrize(
    ("find", "replace"),
    [("(a)(?P<x>b)?", r"\1\2\g<x>\g<0>"), (r"\p{Lu}++", "X"), ("a|(b)", r"\1"), ("a", r"\n")],
)
def test_what_can_be_used_is_not_refused(find: str, replace: str) -> None:
    check_rule(find, replace)
    assert Redaction([(find, replace)])("abB")
