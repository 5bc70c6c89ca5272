"""A batch on a ComfyUI that is reached through another server, which asks for a password, or lets only some through."""

import asyncio
import contextlib
import json
import threading
from base64 import b64encode

import aiohttp
import pytest
from aiohttp import web

from dev.server import free_port
from exvideo_core.batch import client as their_client
from exvideo_core.batch.__main__ import main
from exvideo_core.batch.client import Client, split_login
from tests.server.test_batch import draw

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": ""}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "relayed"}},
}
LOGIN = f"Basic {b64encode(b'me:open sesame').decode()}"


class Relay:
    """Hands on to a server, but what `instead` answers; on a socket `first_words` come before what that says."""

    def __init__(self, url, instead, first_words=()):
        self._url, self._instead, self._first_words = url, instead, first_words
        self.port, self.sockets = free_port(), 0

    @contextlib.contextmanager
    def running(self):
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), loop).result(30)
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._stop(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _start(self):
        self._session = aiohttp.ClientSession()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def _stop(self):
        await self._session.close()
        await self._runner.cleanup()

    async def _answer(self, request):
        self.sockets += request.path == "/ws"
        answer = await self._instead(request)
        if answer is not None:
            return answer
        if request.path == "/ws":
            answer = web.WebSocketResponse()
            await answer.prepare(request)
            async with self._session.ws_connect(self._url + request.path_qs) as theirs:
                for words in self._first_words:
                    await answer.send_str(words)
                async for message in theirs:
                    await answer.send_str(message.data)
            return answer
        headers = {"Content-Type": request.headers.get("Content-Type", "")}
        body = await request.read()
        async with self._session.request(request.method, self._url + request.path_qs, data=body, headers=headers) as it:
            return web.Response(status=it.status, body=await it.read(), content_type=it.content_type)


async def closes_sockets(request):
    if request.path != "/ws":
        return None
    answer = web.WebSocketResponse()
    await answer.prepare(request)
    await answer.close()
    return answer


async def shows_a_page(request):
    return web.Response(text="<html>Sign in</html>", content_type="text/html")


async def nothing_else(request):
    return None


async def is_slow_to_shake_hands(request):
    if request.path == "/ws":
        await asyncio.sleep(1.5)


async def is_elsewhere(request):
    return web.HTTPFound("https://elsewhere.example/") if request.method == "POST" else None


async def asks_for_a_password(request):
    return None if request.headers.get("Authorization") == LOGIN else web.Response(status=401)


@pytest.fixture
def batch(server, tmp_path, capsys):
    """Run a batch through a relay: the exit status, what was said, and how many sockets were asked for."""
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))

    def run(instead, login="", pictures=1, first_words=(), scheme="http"):
        drawn = [str(draw(tmp_path / f"picture{number}.png")) for number in range(pictures)]
        with Relay(server.url, instead, first_words).running() as relay:
            url = f"{scheme}://{login}127.0.0.1:{relay.port}"
            chosen = [f"--workflow={tmp_path / 'graph.json'}", f"--output={tmp_path / 'made'}", f"--server={url}"]
            status = main([*drawn, *chosen])
        return status, "".join(capsys.readouterr()), relay.sockets

    return run


def test_sockets_that_are_closed_at_once(batch):
    status, said, sockets = batch(closes_sockets)
    assert (status, "1 done" in said) == (0, True), said
    assert sockets < 20


def test_a_page_instead_of_an_answer(batch):
    status, said, _ = batch(shows_a_page)
    assert status == 2
    assert "should answer GET /object_info with JSON, got text/html" in said


def test_a_password(batch):
    status, said, _ = batch(asks_for_a_password, "me:open%20sesame@")
    assert status == 0, said
    status, more, _ = batch(asks_for_a_password, "me:close%20sesame@")
    assert status == 2
    assert "401" in more
    assert "sesame" not in said + more


def test_a_server_that_is_down_behind_another_costs_no_picture(batch):
    """It is asked for the first picture alone, which it may have taken; the others are not reached, and stay to do."""
    uploads = []

    async def goes_down(request):
        if request.path == "/upload/image":
            uploads.append(request.path)
        return web.Response(status=502, text="Bad Gateway") if len(uploads) > 1 else None

    status, said, _ = batch(goes_down, pictures=4)
    assert (status, len(uploads)) == (1, 2), said
    assert "1 done, 0 failed, 3 not reached" in said
    assert "answered 502 Bad Gateway" in said


def test_what_other_packs_say_on_the_socket(batch):
    words = [json.dumps(said) for said in ({"type": "x", "data": [1]}, {"type": "y", "data": "text"}, [1], "text", 7)]
    status, said, _ = batch(nothing_else, first_words=words)
    assert (status, "1 done" in said) == (0, True), said


def test_a_server_that_is_slow_to_shake_hands(batch, monkeypatch):
    monkeypatch.setattr(their_client, "SILENCE", 0.5)
    status, said, _ = batch(is_slow_to_shake_hands)
    assert (status, "1 done" in said) == (0, True), said


def test_a_server_that_has_moved(batch):
    status, said, _ = batch(is_elsewhere)
    assert status == 1, said
    assert "it says to look at https://elsewhere.example/: give the address that it has now" in said


def test_an_address_in_capitals(batch):
    status, said, _ = batch(nothing_else, scheme="HTTP")
    assert status == 0, said


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://127.0.0.1:8188/", ("http://127.0.0.1:8188", "")),
        ("https://me:a%40b@host/comfy", ("https://host/comfy", "me:a@b")),
        ("https://host/user@team/comfy", ("https://host/user@team/comfy", "")),
        ("HTTP://[::1]:8188", ("http://[::1]:8188", "")),
    ],
)
def test_an_address_and_the_login_in_it(url, parts):
    assert split_login(url) == parts


def test_a_server_far_away_is_reached_through_the_proxy_of_the_environment(server, monkeypatch):
    with Relay(server.url, nothing_else).running() as relay:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{relay.port}")
        with Client("http://comfy.example") as client:
            assert "LoadImage" in client.object_info()
    # One near by directly: the proxy is gone.
    with Client(server.url) as client:
        assert "LoadImage" in client.object_info()
