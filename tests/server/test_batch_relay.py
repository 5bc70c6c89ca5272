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
from exvideo_core.batch.__main__ import main
from tests.server.test_batch import draw

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": ""}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "relayed"}},
}
LOGIN = f"Basic {b64encode(b'me:open sesame').decode()}"


class Relay:
    """Hands on to a server, but what `instead` answers."""

    def __init__(self, url, instead):
        self._url, self._instead = url, instead
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


async def asks_for_a_password(request):
    return None if request.headers.get("Authorization") == LOGIN else web.Response(status=401)


@pytest.fixture
def batch(server, tmp_path, capsys):
    """Run a batch through a relay: the exit status, what was said, and how many sockets were asked for."""
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    picture = draw(tmp_path / "picture.png")

    def run(instead, login=""):
        with Relay(server.url, instead).running() as relay:
            url = f"http://{login}127.0.0.1:{relay.port}"
            chosen = [f"--workflow={tmp_path / 'graph.json'}", f"--output={tmp_path / 'made'}", f"--server={url}"]
            status = main([str(picture), *chosen])
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
