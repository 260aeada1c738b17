"""The page in a real browser."""

import json
import shutil

import pytest

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

SCRIPT = {
    "rules": [
        {"after": r"kind\.$", "reply": " All <b>is</b> well."},
        {"reply": "I am rude. <img src=x onerror=\"document.title='owned'\"> Go."},
    ]
}
RULES = [{"find": r"I am rude\.", "replace": "I am kind."}]


@pytest.fixture
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page()
        page.set_default_timeout(20_000)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: outside(request.url, problems))
        yield page
        browser.close()
    assert not problems


def outside(url: str, problems: list[str]) -> None:
    if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        problems.append(f"the page asked for {url}")


def ask(page, url: str, mode: str, question: str = "hello") -> None:
    page.goto(url.removesuffix("/v1") + "/")
    page.fill("#question", question)
    page.select_option("#mode", mode)
    page.click("#go")
    page.wait_for_selector("#numbers:not([hidden])")


def test_the_original_stands_beside_the_corrected_text(start, page):
    ask(page, start(script=SCRIPT, rules=RULES).url, "stream")
    rows = page.inner_text("#rows")
    assert "I am rude." in rows
    assert "I am kind." in rows
    assert "All <b>is</b> well." in rows
    assert "replace" in rows
    # Gaps between changed words are marked with them.
    assert page.evaluate("compare('a b c d', 'a x y d')") == [
        [["", "a "], ["del", "b c"], ["", " d"]],
        [["", "a "], ["ins", "x y"], ["", " d"]],
    ]


@pytest.mark.parametrize("mode", ["off", "shadow", "whole"])
def test_every_mode_shows_its_reply_and_markup_stays_text(start, page, mode):
    ask(page, start(script=SCRIPT, rules=RULES).url, mode)
    assert "<img src=x onerror=" in page.inner_text("#reply")
    assert page.title() != "owned"


def test_an_error_is_shown_in_words(start, page):
    fault = {"status": 429, "body": {"error": {"message": "too many questions"}}}
    url = start(script={"rules": [{"fault": fault}]}).url
    page.goto(url.removesuffix("/v1") + "/")
    page.fill("#question", "hello " * 5000)
    page.click("#go")
    page.wait_for_selector("#status:has-text('too many')")
    seen = page.locator("#status").bounding_box()
    assert 0 <= seen["y"] <= page.viewport_size["height"] - seen["height"]
    assert not page.is_visible("#heads")


def test_the_keyboard_alone_is_enough(start, page):
    url = start(script=SCRIPT, rules=RULES).url
    page.goto(url.removesuffix("/v1") + "/")
    page.focus("#question")
    page.keyboard.type("hello")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#numbers:not([hidden])")
    assert "I am kind." in page.inner_text("#rows")


def test_asking_before_the_models_are_listed_or_after_that_failed_asks_for_them(start, page):
    url = start(script=SCRIPT, rules=RULES).url
    answers = iter(["fail", "slow"])

    def models(route):
        match next(answers, None):
            case "fail":
                route.fulfill(status=502, json={"error": {"message": "the upstream is down."}})
            case _:
                page.wait_for_timeout(300)
                route.continue_()

    page.route("**/v1/models", models)
    page.goto(url.removesuffix("/v1") + "/")
    page.wait_for_selector("#status:has-text('is down')")
    page.fill("#question", "hello")
    page.click("#go")
    page.wait_for_selector("#numbers:not([hidden])")
    assert "I am kind." in page.inner_text("#rows")
    assert page.locator("#model option").count() == 1


def answering(body):
    def answer(route):
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    return answer


def test_the_beginning_of_a_rewrite_is_shown_until_its_sentence_comes(start, page):
    url = start(script=SCRIPT, rules=RULES).url
    sentence = {
        "index": 0,
        "original": "I am rude.",
        "text": "I am kind.",
        "verdict": "replace",
        "end": False,
        "branch": 0,
        "review_ms": 5,
        "waited_ms": 5,
    }
    begun = {"choices": [{"index": 0, "delta": {"content": "I am"}, "finish_reason": None}]}
    rest = {
        "choices": [{"index": 0, "delta": {"content": " kind."}, "finish_reason": None}],
        "stream_aligner": {"sentence": sentence},
    }
    for frames, shown in (([begun], "I am"), ([begun, rest], None)):
        body = "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames) + "data: [DONE]\n\n"
        page.route("**/v1/chat/completions", answering(body))
        ask(page, url, "stream")
        rows = page.locator(".row.begun")
        assert rows.count() == (shown is not None)
        if shown:
            assert rows.locator("> div").nth(1).inner_text() == shown
        else:
            assert "kind." in page.inner_text("#rows")
        page.unroute("**/v1/chat/completions")


def test_where_keys_are_needed_the_page_asks_for_one_and_keeps_it_in_this_tab(
    start_keyed, page, tmp_path
):
    url, key = start_keyed
    page.goto(url)
    page.wait_for_selector("#signin:not([hidden])")
    assert not page.is_visible("#form")
    for wrong in ("not a key", "sk-sa-wrong"):
        page.fill("#key", wrong)
        page.press("#key", "Enter")
        page.wait_for_selector("#refused:not([hidden])")
    page.screenshot(path=str(tmp_path / "signin.png"))
    page.fill("#key", key)
    page.click("#signin button")
    page.wait_for_selector("#form:not([hidden])")
    page.fill("#question", "hello")
    page.click("#go")
    page.wait_for_selector("#numbers:not([hidden])")
    assert "I am kind." in page.inner_text("#rows")
    assert page.locator("#mode option").count() == 1
    page.reload()
    page.wait_for_selector("#form:not([hidden])")
    assert key not in page.content()
    page.click("#signout")
    page.wait_for_selector("#signin:not([hidden])")
    page.reload()
    page.wait_for_selector("#signin:not([hidden])")
    assert page.evaluate("document.cookie") == ""


@pytest.fixture
def start_keyed(tmp_path):
    """The address of a proxy that asks for a key which may use one mode, and the key."""
    import yaml

    from stream_aligner_proxy.access.keys import hash_of, new_key
    from stream_aligner_proxy.app import create_app
    from stream_aligner_proxy.demo.script import parse
    from stream_aligner_proxy.demo.scripted import ScriptedUpstream
    from stream_aligner_proxy.settings import build
    from tests.servers import serve_in_thread

    key = new_key()
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    with serve_in_thread(ScriptedUpstream(parse({"model": "scripted", **SCRIPT}))) as upstream:
        main = {"name": "main", "base_url": f"{upstream}/v1", "dialect": "vllm", "probe": False}
        settings = build(
            {
                "upstreams": [main],
                "aligner": {"backend": "rules", "path": str(tmp_path / "rules.yaml")},
                "access": {"keys": [{"name": "a", "hash": hash_of(key), "modes": ["stream"]}]},
            }
        )
        with serve_in_thread(create_app(settings)) as address:
            yield f"{address}/", key
