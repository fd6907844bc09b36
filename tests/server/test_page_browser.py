"""The page in a real browser: words stream in, stop stops, bars are drawn, and the console stays empty."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.light import LOAD_SECONDS
from tests.server.page_app import SPEECH, make_app, traffic
from tests.server.serving import Process
from tests.server.serving import serving as octavo_serve

uvicorn = pytest.importorskip("uvicorn")
webdriver = pytest.importorskip("selenium.webdriver")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver on the PATH"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@contextlib.contextmanager
def serving(app: Any, *jobs: Callable[[], Any]) -> Iterator[str]:
    """The app on a free port, and jobs on its loop."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=2))

    async def end_streams() -> None:  # as the server does when it is told to stop
        while not server.should_exit:
            await asyncio.sleep(0.05)
        app.state.engine.recorder.close()

    async def main() -> None:
        tasks = [asyncio.create_task(job()) for job in (*jobs, end_streams)]
        await server.serve()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_window_size(1300, 900)
    yield driver
    driver.quit()


class Page:
    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get_log("browser")  # forget other tests'
        browser.get("about:blank")
        browser.get(url)
        until(lambda: self.find("#model").get_attribute("title"))

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.browser.find_elements("css selector", selector)
        return found

    def run(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def say(self, text: str) -> None:
        self.find("#prompt").send_keys(text)
        self.find("#send").click()

    def answer(self) -> str:
        texts = self.all(".message.assistant .text")
        return texts[-1].text if texts else ""

    def is_idle(self) -> bool:
        return bool(self.find("#send").is_displayed())

    def complaints(self) -> list[str]:
        """What the console says, but for what the tests' own look at the pixels makes it say."""
        messages = [entry["message"] for entry in self.browser.get_log("browser")]
        return [message for message in messages if "readback operations" not in message]

    def num_drawn(self, canvas: str) -> int:
        """Pixels of a canvas that are not empty."""
        script = f"""
            const canvas = document.querySelector('{canvas}');
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            let count = 0;
            for (let i = 3; i < data.length; i += 4) count += data[i] > 0;
            return count;"""
        return int(self.run(script))


def test_words_stream_in_and_tokens_are_coloured(browser: Any) -> None:
    app = make_app()
    with serving(app) as url:
        page = Page(browser, url)
        page.find("#settings summary").click()
        for name, value in (("temperature", "0.5"), ("top_k", "7"), ("max_tokens", "99"), ("seed", "3")):
            page.find(f"#{name}").send_keys(value)
        page.find("#system").send_keys("Be brief.")
        page.find("#logprobs").click()
        page.find("#settings summary").click()
        page.say("think of <b>books</b>")
        until(lambda: 0 < len(page.answer()) < len(SPEECH) / 2)  # seen on its way
        until(page.is_idle)
        assert page.answer() == SPEECH
        assert page.find(".message.user .text").text == "think of <b>books</b>" and not page.all(".message b")
        body = app.state.bodies[0]
        sent = {name: body[name] for name in ("temperature", "top_k", "max_tokens", "seed", "logprobs", "stream")}
        assert sent == {"temperature": 0.5, "top_k": 7, "max_tokens": 99, "seed": 3, "logprobs": True, "stream": True}
        assert "top_p" not in body  # what is left open is not sent
        roles = [(message["role"], message["content"]) for message in body["messages"]]
        assert roles == [("system", "Be brief."), ("user", "think of <b>books</b>")]
        assert not page.find(".reasoning div").is_displayed()  # folded
        page.find(".reasoning summary").click()
        assert page.find(".reasoning div").text.startswith("They ask about books")
        tokens = page.all(".token")
        assert len(tokens) == len(SPEECH.split())
        webdriver.ActionChains(browser).move_to_element(tokens[3]).perform()
        until(lambda: page.find("#tip").is_displayed())
        assert len(page.all("#tip tr")) == 5 and "%" in page.find("#tip").text
        doubts = {token.value_of_css_property("background-color") for token in tokens}
        assert len(doubts) > 5  # shades, by probability
        assert "16 of" in page.find(".message.assistant footer").text
        assert page.complaints() == []


def test_stop_regenerate_errors_and_a_second_turn(browser: Any) -> None:
    app = make_app(pause=0.05)
    with serving(app) as url:
        page = Page(browser, url)
        page.say("hello")
        until(lambda: len(page.answer()) > 20)
        page.find("#stop").click()
        until(page.is_idle)
        stopped = page.answer()
        assert 0 < len(stopped) < len(SPEECH) and "stopped" in page.find(".message footer").text
        until(lambda: app.state.num_left == 1)  # the server was told
        page.find(".again").click()
        until(lambda: len(app.state.bodies) == 2)
        page.find("#stop").click()
        until(page.is_idle)
        assert app.state.bodies[1]["messages"] == [{"role": "user", "content": "hello"}]
        assert len(page.all(".message")) == 2
        page.say("refuse")
        until(lambda: page.all(".error"))
        assert "temperature must be at least 0" in page.find(".error").text
        assert [message["role"] for message in app.state.bodies[2]["messages"]][-1] == "user"
        page.say("break")
        until(lambda: len(page.all(".error")) == 2)
        assert page.all(".error")[1].text == "the engine core has died"
        assert page.answer() == " ".join(SPEECH.split()[:5])  # what came before stays
        assert [line for line in page.complaints() if "400" not in line] == []


def test_the_live_view_draws_and_rests_when_out_of_sight(browser: Any) -> None:
    app = make_app()
    engine = app.state.engine
    live = engine.recorder.live
    with serving(app, lambda: traffic(engine, 30.0)) as url:
        page = Page(browser, url)
        until(lambda: page.run("return octavoLive().bars") > 20)
        first = page.run("return octavoLive()")
        assert page.find("#link-text").text == "live" and live.num_listeners == 1
        for canvas in ("#steps", "#c-generated", "#c-cache", "#c-running"):
            until(lambda canvas=canvas: page.num_drawn(canvas) > 100)
        until(lambda: page.run("return octavoLive().bars") > first["bars"])
        until(lambda: page.find("#v-running").text.split()[0] not in ("–", "0"))
        until(lambda: page.find("#v-hits").text.endswith("%"))
        until(lambda: "running" in page.find("#steps").get_attribute("aria-label"))
        # colours of requests, then a step under the pointer
        page.find("[name=colours][value=request] + span").click()
        canvas = page.find("#steps")
        across = canvas.size["width"] // 2 - 60
        webdriver.ActionChains(browser).move_to_element_with_offset(canvas, across, 0).perform()
        until(lambda: "request" in page.find("#tip").text)
        # a phone shows the chat first: the stream is closed until the engine is asked for
        browser.set_window_size(500, 800)
        until(lambda: live.num_listeners == 0)
        assert not page.find("#steps").is_displayed()
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
        page.find("nav [data-view=engine]").click()
        until(lambda: live.num_listeners == 1)
        until(lambda: page.num_drawn("#steps") > 100)
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
        browser.set_window_size(1300, 900)
        assert page.complaints() == []


def test_a_key_is_asked_for_once(browser: Any) -> None:
    app = make_app(key="sesame")
    with serving(app) as url:
        browser.get_log("browser")
        browser.get(url)
        until(lambda: browser.find_element("id", "key-form").is_displayed())
        browser.find_element("id", "key").send_keys("sesame\n")
        until(lambda: browser.execute_script("return octavoLive().ticks") > 0)
        page = Page(browser, url)  # kept for this tab
        page.say("hello")
        until(lambda: len(page.answer()) > 5)
        assert not page.find("#key-form").is_displayed()
        page.run("sessionStorage.clear()")


def test_the_page_of_octavo_serve(browser: Any, server: Process) -> None:
    def num_finished() -> float:
        series = httpx.get(f"{server.url}/metrics").text
        ended = re.findall(r'octavo:request_success_total\{.*finished_reason="(?:length|stop)".*\} (.*)', series)
        return sum(map(float, ended))

    before = num_finished()
    page = Page(browser, server.url)
    page.find("#settings summary").click()
    page.find("#max_tokens").send_keys("40")
    page.find("#temperature").send_keys("0")  # the same words each time
    page.find("#logprobs").click()
    page.find("#settings summary").click()
    until(lambda: page.find("#link-text").text == "live")  # so that it sees the steps to come
    page.say("hello")
    until(lambda: page.all(".message footer"))
    assert page.answer() and not page.all(".error"), page.find(".message.assistant").text
    tokens = page.all(".token")
    assert len(tokens) > 5
    shown = next(token for token in tokens if token.text.strip())
    webdriver.ActionChains(browser).move_to_element(shown).perform()
    until(lambda: page.find("#tip").is_displayed())
    assert len(page.all("#tip tr")) >= 5
    until(lambda: page.run("return octavoLive().bars") > 5)
    until(lambda: page.num_drawn("#steps") > 100)
    assert num_finished() == before + 1
    assert page.complaints() == []


def test_a_page_waits_for_the_engine_and_keeps_no_server_from_ending(browser: Any, tiny_model: Path) -> None:
    with octavo_serve(tiny_model, environment={LOAD_SECONDS: "2"}, is_light=True) as process:
        page = Page(browser, process.url)  # asks again until the engine is there
        until(lambda: page.find("#link-text").text == "live")
        process.process.terminate()
        assert process.wait(8) == 0
        assert [line for line in page.complaints() if "503" not in line and "ERR_" not in line] == []
