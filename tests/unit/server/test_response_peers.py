"""Two server processes of one core, in one process here: what one keeps, the other can do everything with."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from octavo.server import response_peers
from octavo.server.response_peers import Place, ResponsePeers
from tests.unit.server.scripted_server import Server, run, scripted_server
from tests.unit.server.test_responses import ANSWER, TOOLS, URL, until_status


@asynccontextmanager
async def two_servers(directory: Path, answer: str) -> AsyncIterator[tuple[Server, Server]]:
    async with scripted_server(answer) as one, scripted_server(answer) as two:
        opened = []
        for index, server in enumerate((one, two)):
            store = server.app.state.responses
            store.elsewhere = ResponsePeers(store, Place(str(directory), index, 3))  # the third never comes
            await store.elsewhere.open()
            opened.append(store.elsewhere)
        try:
            yield one, two
        finally:
            for peers in opened:
                peers.close()


def test_retrieving_going_on_and_deleting(tmp_path: Path) -> None:
    async def work() -> None:
        async with two_servers(tmp_path, ANSWER) as (one, two):
            made = await one.json(URL, input="hello", tools=TOOLS, request_id="x")
            assert (await two.client.get(f"{URL}/{made['id']}")).json() == made
            output = {"type": "function_call_output", "call_id": "call_0", "output": "seen"}
            await two.json(URL, input=[output], previous_response_id=made["id"], tools=TOOLS)
            text = two.engine.get_tokenizer().decode(two.core.added[-1].prompt_token_ids, skip_special_tokens=False)
            assert text.endswith('user:hello;assistant:(hm)so [look {"a": 1}][find {}];tool:seen;A:')
            twice = await two.post(URL, input="hello", request_id="x")
            assert twice.status_code == 400 and twice.json()["error"]["param"] == "request_id"
            assert (await two.client.delete(f"{URL}/{made['id']}")).json()["deleted"] is True
            for server in (one, two):
                assert (await server.client.get(f"{URL}/{made['id']}")).status_code == 404

    run(work)


def test_following_and_cancelling_what_is_being_made(tmp_path: Path) -> None:
    async def work() -> None:
        async with two_servers(tmp_path, "the cat " * 50) as (one, two):
            one.core.before_step = lambda: time.sleep(0.02)
            asked = await one.json(URL, input="hello", background=True)
            following = asyncio.create_task(two.client.get(f"{URL}/{asked['id']}?stream=true"))
            await until_status(two, asked["id"], {"in_progress"})
            cancelled = await two.post(f"{URL}/{asked['id']}/cancel")
            assert cancelled.json()["status"] == "cancelled"
            while one.core.requests:
                await asyncio.sleep(0.01)
            followed = (await following).text
            assert "response.created" in followed and "response.completed" not in followed
            again = (await two.client.get(f"{URL}/{asked['id']}?stream=true")).text
            assert again == followed == (await one.client.get(f"{URL}/{asked['id']}?stream=true")).text
            later = (await two.client.get(f"{URL}/{asked['id']}?stream=true&starting_after=1")).text
            assert later and again.endswith(later) and "response.created" not in later

    run(work)


def test_a_whole_stream_is_the_same_from_either(tmp_path: Path) -> None:
    async def work() -> None:
        async with two_servers(tmp_path, ANSWER) as (one, two):
            one.core.before_step = lambda: time.sleep(0.005)
            asked = await one.json(URL, input="hello", background=True, tools=TOOLS)
            streams = [server.client.get(f"{URL}/{asked['id']}?stream=true") for server in (two, one, two)]
            texts = [answer.text for answer in await asyncio.gather(*streams)]
            assert texts[0] == texts[1] == texts[2]
            assert re.findall("^event: (.*)$", texts[0], re.MULTILINE)[-1] == "response.completed"

    run(work)


def test_who_follows_and_leaves_is_not_waited_for(tmp_path: Path) -> None:
    async def work() -> None:
        async with two_servers(tmp_path, "the cat " * 50) as (one, two):
            one.core.before_step = lambda: time.sleep(0.02)
            asked = await one.json(URL, input="hello", background=True)
            before = len(asyncio.all_tasks())
            remote = await two.app.state.responses.find(asked["id"])
            events = remote.follow(0)
            assert await anext(events)
            await events.aclose()
            while len(asyncio.all_tasks()) > before:
                await asyncio.sleep(0.01)
            await one.post(f"{URL}/{asked['id']}/cancel")

    run(work)


def test_a_process_that_does_not_answer_is_no_404(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_peers, "_PATIENCE", 0.1)

    async def work() -> None:
        async with two_servers(tmp_path, "x") as (one, _):

            async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.read()
                writer.close()

            third = await asyncio.start_unix_server(deaf, Place(str(tmp_path), 0, 3).path(2))
            silent = await one.client.get(f"{URL}/resp_y")
            assert silent.status_code == 503 and silent.headers["retry-after"]
            third.close()
            await third.wait_closed()
            assert (await one.client.get(f"{URL}/resp_y")).status_code == 404, "nobody listens there: it keeps nothing"

    run(work)


def test_one_that_was_killed_comes_back(tmp_path: Path) -> None:
    async def work() -> None:
        async with two_servers(tmp_path, "x") as (one, two):
            place = Place(str(tmp_path), 1, 3)
            assert Path(place.path(1)).exists()
            again = ResponsePeers(two.app.state.responses, place)
            await again.open()  # in spite of the file that is there
            made = await two.json(URL, input="hello")
            assert (await one.client.get(f"{URL}/{made['id']}")).json() == made
            again.close()

    run(work)
