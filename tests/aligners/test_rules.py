"""The rules aligner: what a rules file does, and how a wrong one is refused."""

from pathlib import Path

import pytest

from stream_aligner_proxy.aligners.registry import create
from stream_aligner_proxy.aligners.rules import RulesAligner
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.records import Review, Scope, Turn, Verdict

pytestmark = pytest.mark.anyio

CONVERSATION = (Turn("user", "Say something."),)


async def started(tmp_path: Path, text: str) -> RulesAligner:
    path = tmp_path / "rules.yaml"
    path.write_text(text, encoding="utf-8")
    aligner = RulesAligner(path)
    await aligner.start()
    return aligner


async def verdict(aligner: RulesAligner, text: str, scope: Scope = "sentence") -> Verdict:
    return await aligner.review(Review(CONVERSATION, "Before.", text, scope))


async def test_a_sentence_that_no_rule_touches_is_kept(tmp_path: Path) -> None:
    aligner = await started(tmp_path, "[{find: cat, replace: dog}]")
    assert await verdict(aligner, "A bird.") == Verdict(None)


async def test_rules_apply_in_order_each_to_the_output_of_the_one_before(tmp_path: Path) -> None:
    aligner = await started(tmp_path, "[{find: cat, replace: dog}, {find: 'dog\\b', replace: fox}]")
    assert await verdict(aligner, "A cat.") == Verdict("A fox.")


async def test_a_change_that_a_later_rule_takes_back_is_a_keep(tmp_path: Path) -> None:
    aligner = await started(tmp_path, "[{find: a, replace: b}, {find: b, replace: a}]")
    assert await verdict(aligner, "a") == Verdict(None)


async def test_a_replacement_may_refer_to_groups_by_number_and_by_name(tmp_path: Path) -> None:
    aligner = await started(
        tmp_path,
        r"""[{find: '(\w+), (?P<first>\w+)', replace: '\g<first> \1'}]""",
    )
    assert await verdict(aligner, "Lovelace, Ada.") == Verdict("Ada Lovelace.")


async def test_a_sentence_may_be_deleted(tmp_path: Path) -> None:
    aligner = await started(tmp_path, "[{find: '(?s)^As an AI.*', replace: ''}]")
    assert await verdict(aligner, "As an AI,\nI cannot.") == Verdict("")


async def test_white_space_that_a_rule_leaves_at_the_ends_is_dropped(tmp_path: Path) -> None:
    aligner = await started(tmp_path, "[{find: '^Well,', replace: ''}, {find: '!', replace: ' '}]")
    assert await verdict(aligner, "Well, go!") == Verdict("go")
    assert await verdict(aligner, "Go.") == Verdict(None)


async def test_a_rule_with_end_ends_the_reply_even_where_it_changes_nothing(tmp_path: Path) -> None:
    aligner = await started(tmp_path, "[{find: Goodbye, replace: Goodbye, end: true}]")
    assert await verdict(aligner, "Goodbye.") == Verdict(None, end=True)
    assert await verdict(aligner, "Hello.") == Verdict(None)


async def test_a_whole_answer_is_changed_everywhere(tmp_path: Path) -> None:
    aligner = await started(tmp_path, "[{find: cat, replace: dog, name: species}]")
    answer = "A cat.\n\n" + "A cat. " * 2000 + "End."
    assert await verdict(aligner, answer, "whole") == Verdict(answer.replace("cat", "dog"))


async def test_an_empty_list_keeps_everything(tmp_path: Path) -> None:
    aligner = await started(tmp_path, "[]")
    assert await verdict(aligner, "Anything.") == Verdict(None)
    await aligner.close()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{find: a, replace: b}", ["must be a list"]),
        ("", ["must be a list"]),
        ("[{find: a", ["line 1", "expected"]),
        ("- {find: a, find: b, replace: c}", ["line 1", "'find' is given twice"]),
        ('- {find: "\\butili", replace: use}', ["entry 1", "control character", "single quotes"]),
        ("[{find: a, replace: b}, nonsense]", ["entry 2", "must be a mapping"]),
        ("[{find: a, replace: b, flags: i}]", ["entry 1", "'flags'", "find, replace, end, name"]),
        ("[{find: a, replace: b}, {find: a}]", ["entry 2", "'replace' is missing"]),
        ("[{replace: a}]", ["entry 1", "'find' is missing"]),
        ("[{find: '', replace: a}]", ["entry 1", "'find' is empty"]),
        ("[{find: 3, replace: a}]", ["entry 1", "'find' must be a string"]),
        ("[{find: a, replace: null}]", ["entry 1", "'replace' must be a string"]),
        ("[{find: a, replace: b, end: maybe}]", ["entry 1", "'end' must be true or false"]),
        ("[{find: '(a', replace: b}]", ["entry 1", "'find' is not a regular expression"]),
        ("[{find: a, replace: '\\1'}]", ["entry 1", "'replace'", "group"]),
        ("[{find: '(a)', replace: '\\g<name>'}]", ["entry 1", "'replace'", "name"]),
        ("[{find: a, replace: '\\q'}]", ["entry 1", "'replace'", "escape"]),
    ],
)
async def test_a_wrong_file_is_refused_with_its_place(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        await started(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"aligner.path: {tmp_path / 'rules.yaml'}")
    for part in parts:
        assert part in message


async def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"aligner\.path: .*none\.yaml: cannot be read"):
        await RulesAligner(tmp_path / "none.yaml").start()


async def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        await RulesAligner(tmp_path / "rules.yaml").start()


async def test_a_slow_rule_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_aligner_proxy.aligners.rules.SLOW_SECONDS", -1.0)
    aligner = await started(tmp_path, "[{find: a, replace: b, name: sluggish}]")
    await verdict(aligner, "a")
    assert "sluggish" in caplog.text


def test_the_registry_makes_the_aligner_that_the_settings_describe(tmp_path: Path) -> None:
    aligner = create({"backend": "rules", "path": tmp_path, "name": "style", "device": "cpu"})
    assert isinstance(aligner, RulesAligner)
    assert aligner.name == "style"
    assert aligner.scopes == {"sentence", "whole"}
