"""A client of ComfyUI's documented API: upload, queue, follow, fetch the files."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import requests
import websocket

from ..files import whole_or_nothing
from ..types import ExVideoError

FILE_KEYS = ("images", "video", "gifs")
# How long the socket may be silent before we ask the server by other means how things stand.
SILENCE = 5.0
RECONNECT_FOR = 30.0
RECORD_WITHIN = 30.0
FIRST_ANSWER_WITHIN = 60.0
# What is queued sooner may be taken up before.
FORGETS_WITHIN = 1.0
AWAY = (502, 503, 504)
"""What a server in front of ComfyUI answers while that is down or too busy."""

OnEvent = Callable[[str, dict[str, Any]], None]


class ClientError(ExVideoError):
    """The server refused, failed or is gone."""


class PromptCancelledError(ClientError):
    """Somebody cancelled the prompt."""


class PromptRefusedError(ClientError):
    """The server found the prompt wrong before it ran anything of it."""


class ServerGoneError(ClientError):
    """The server does not answer."""


class FileGoneError(ClientError):
    """The server no longer has a file that it says it has saved."""


class Output(NamedTuple):
    """A file that a node has saved."""

    node: str
    filename: str
    subfolder: str
    type: str


class Client:
    """Talks to one server, also to one that asks for a name and a password, as in `http://name:password@host`.

    One far away is reached as the environment says, through its proxies (HTTPS_PROXY, NO_PROXY); one near by directly.
    Certificates are those of REQUESTS_CA_BUNDLE, where that is set.

    `alive` tells whether its process still runs (leave it out for a server of someone else).
    """

    def __init__(self, url: str, alive: Callable[[], bool] = lambda: True) -> None:
        self.url, login = split_login(url)
        self.alive = alive
        self.id = uuid.uuid4().hex
        self._headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"} if login else {}
        self._http = requests.Session()
        self._near, self._bundle = _is_near(urlsplit(self.url).hostname or ""), os.environ.get("REQUESTS_CA_BUNDLE")
        self._http.trust_env = not self._near
        self._http.verify = self._bundle or True
        self._http.headers.update(self._headers)
        self._socket: websocket.WebSocket | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._disconnect()
        self._http.close()

    def upload_image(self, path: Path) -> str:
        """Put a picture into the server's input folder; returns the name that `LoadImage` knows it by."""
        with path.open("rb") as file:
            # A name that is no text, as other systems may have left on a disk, is not sent as it is.
            name = os.fsencode(path.name).decode(errors="replace")
            stored = self._ask("POST", "/upload/image", files={"image": (name, file, "image/png")})
        return f"{stored['subfolder']}/{stored['name']}" if stored.get("subfolder") else str(stored["name"])

    def object_info(self) -> dict[str, Any]:
        """What the server says about every node: inputs, their order and defaults."""
        return dict(self._ask("GET", "/object_info", within=FIRST_ANSWER_WITHIN))

    def queue(self, prompt: dict[str, Any], workflow: dict[str, Any] | None = None, prompt_id: str = "") -> str:
        """Queue a prompt in API form, with the graph of the page to be stored in its files; returns the prompt's id.

        Who chooses the id, a UUID, can take the prompt back even where the server's answer was not waited for.
        """
        self._connect()  # before queueing, or the first events go nowhere
        body: dict[str, Any] = {"prompt": prompt, "client_id": self.id}
        if prompt_id:
            body["prompt_id"] = prompt_id
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        answer = self._ask("POST", "/prompt", json=body, accept=(400,))
        if "prompt_id" not in answer:
            raise PromptRefusedError(explain_refusal(answer))
        return str(answer["prompt_id"])

    def follow(self, prompt_id: str, on_event: OnEvent) -> None:
        """Report the prompt's events until it has succeeded; raises when it fails, is cancelled, or the server dies."""
        heard = time.monotonic()
        while True:
            message = self._receive()
            messages = [] if message is None else [_event(message)]
            if any(data.get("prompt_id") == prompt_id for _, data in messages):
                heard = time.monotonic()
            # Silence, a new connection, or talk of other things: the end may have been announced meanwhile, or there is
            # none, for of a prompt that is dropped while it waits nothing is told.
            if message is None or time.monotonic() - heard > SILENCE:
                messages, heard = messages + self._told_meanwhile(prompt_id), time.monotonic()
            for kind, data in messages:
                if data.get("prompt_id", prompt_id) != prompt_id:
                    continue
                on_event(kind, data)
                if kind == "execution_success":
                    return self._wait_for_record(prompt_id)
                if kind not in ("execution_interrupted", "execution_error"):
                    continue
                with contextlib.suppress(ClientError):  # what went wrong matters more
                    self._wait_for_record(prompt_id)
                if kind == "execution_interrupted":
                    raise PromptCancelledError("The prompt was cancelled.")
                raise ClientError(explain_failure(data))

    def _told_meanwhile(self, prompt_id: str) -> list[tuple[str, dict[str, Any]]]:
        """The events of a prompt that has ended; none of one that is still queued or runs."""
        queue = self._ask("GET", "/queue")  # before the history: a prompt goes from the one into the other
        messages = self.history(prompt_id).get("status", {}).get("messages", [])
        if not messages and not any(item[1] == prompt_id for items in queue.values() for item in items):
            raise ClientError(
                f"ComfyUI at {self.url} no longer knows the prompt, as after a restart or when its queue was cleared: "
                "queue it again."
            )
        return list(messages)

    def _wait_for_record(self, prompt_id: str) -> None:
        """The server announces the end a moment before it writes the history."""
        deadline = time.monotonic() + RECORD_WITHIN
        while not self.history(prompt_id):
            if time.monotonic() > deadline:
                raise ClientError(f"ComfyUI should record a finished prompt within {RECORD_WITHIN:.0f} s, it did not.")
            time.sleep(0.05)

    def interrupt(self, prompt_id: str = "") -> None:
        """Ask the server to stop what it computes, whatever it is, or to drop this prompt, whether it runs or waits."""
        if prompt_id:
            self._call("POST", "/queue", json={"delete": [prompt_id]})
        self._call("POST", "/interrupt", json={"prompt_id": prompt_id})

    def forget(self) -> None:
        """Make the server unload its models, and compute anew what it has computed before."""
        self._call("POST", "/free", json={"free_memory": True})
        time.sleep(FORGETS_WITHIN)

    def history(self, prompt_id: str) -> dict[str, Any]:
        """What the server recorded of a prompt that has ended; empty while it has not."""
        return dict(self._ask("GET", f"/history/{prompt_id}").get(prompt_id, {}))

    def download(self, item: Output, destination: Path) -> None:
        """Fetch a saved file. Under `destination` there is the whole file or nothing new."""
        query = {"filename": item.filename, "subfolder": item.subfolder, "type": item.type}
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            with whole_or_nothing(destination) as partial:
                answer = self._call("GET", "/view", params=query, stream=True, accept=(404,))
                with answer, partial.open("wb") as file:
                    if answer.status_code == 404:
                        raise FileGoneError(
                            f"{item.filename} should be in ComfyUI's {item.type} folder, it is gone: restart ComfyUI, "
                            "which takes it for made, and try again."
                        )
                    for block in answer.iter_content(1 << 20):
                        file.write(block)
                expected, size = answer.headers.get("Content-Length"), partial.stat().st_size
                if expected is not None and size != int(expected):
                    raise ClientError(f"{item.filename} should have {expected} bytes, got {size}: try again.")
        except requests.RequestException as error:
            raise ClientError(f"{item.filename} could not be fetched to the end ({error}): try again.") from error
        except OSError as error:
            raise ClientError(
                f"{destination} cannot be written ({error}): free some space, or take another folder."
            ) from error

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        """What the server answers, out of JSON."""
        answer = self._call(method, path, **options)
        try:
            return answer.json()
        except ValueError as error:
            kind = answer.headers.get("Content-Type", "something else")
            raise ClientError(
                f"ComfyUI at {self.url} should answer {method} {path} with JSON, got {kind}: this may be another "
                "program, or a page to sign in at; look at the address in a browser."
            ) from error

    def _call(
        self, method: str, path: str, *, accept: tuple[int, ...] = (), within: float = 600.0, **options: Any
    ) -> requests.Response:
        try:
            # Patient: a server in the middle of a layer may take long to answer. And no further than there: a POST
            # that is sent on would become a GET.
            answer = self._http.request(method, self.url + path, timeout=(10, within), allow_redirects=False, **options)
        except requests.RequestException as error:
            raise self._gone(error) from error
        if answer.is_redirect:
            raise ClientError(
                f"ComfyUI at {self.url} should answer {method} {path}, it says to look at "
                f"{answer.headers['Location']}: give the address that it has now, or sign in there."
            )
        if not answer.ok and answer.status_code not in accept:
            said = f"{answer.status_code} {answer.reason}. {answer.text[:300]}".strip()
            if answer.status_code in AWAY:
                raise ServerGoneError(f"ComfyUI at {self.url} cannot be reached: what is before it answered {said}")
            raise ClientError(f"{method} {path} should succeed, ComfyUI answered {said}")
        return answer

    def _connect(self) -> None:
        if self._socket is None:
            address = self.url.replace("http", "ws", 1) + f"/ws?clientId={self.id}"
            options: dict[str, Any] = {"http_no_proxy": ["*"]} if self._near else {}
            if self._bundle:
                options["sslopt"] = {"ca_certs": self._bundle}
            try:
                # As patient as other calls, for a server may be busy.
                self._socket = websocket.create_connection(
                    address, timeout=FIRST_ANSWER_WITHIN, header=self._headers, **options
                )
                self._socket.settimeout(SILENCE)
            except (OSError, websocket.WebSocketException) as error:
                raise self._gone(error) from error

    def _disconnect(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError, websocket.WebSocketException):
                self._socket.close(timeout=1)
            self._socket = None

    def _receive(self) -> dict[str, Any] | None:
        """The next message, or None after some silence or on a new connection."""
        deadline = time.monotonic() + RECONNECT_FOR
        while True:
            try:
                if self._socket is None:
                    self._connect()
                    return None
                raw = self._socket.recv()
                if not raw:
                    raise websocket.WebSocketConnectionClosedException("the server closed the connection")
                # Bytes are preview pictures, which a terminal has no use for.
                if isinstance(raw, str) and isinstance(message := json.loads(raw), dict):
                    return message
            except websocket.WebSocketTimeoutException:
                if self.alive():
                    return None
                raise self._gone() from None
            except (OSError, websocket.WebSocketException, ClientError) as error:
                self._disconnect()
                if not self.alive() or time.monotonic() > deadline:
                    raise self._gone(error) from error
                time.sleep(0.5)

    def _gone(self, error: Exception | None = None) -> ServerGoneError:
        if isinstance(error, ServerGoneError):  # a call within a call has found out
            return error
        time.sleep(0.2)  # a dying process closes its connections a moment before it counts as ended
        if not self.alive():
            return ServerGoneError("ComfyUI ended unexpectedly (often: out of memory); its log says more.")
        return ServerGoneError(f"ComfyUI at {self.url} cannot be reached ({error}): see its log.")


def split_login(url: str) -> tuple[str, str]:
    """A server's address without the name and password that may be in it, and these, as `name:password`."""
    scheme, colon, rest = url.rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    login, _, host = host.rpartition("@")
    return scheme.lower() + colon + host + slash + path, unquote(login)


def _is_near(host: str) -> bool:
    """Whether a server is on this machine or in its own network."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".lan", ".localhost"))


def _event(message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of a message, and what it tells; any pack may send others in which that is no dict."""
    data = message.get("data")
    return str(message.get("type", "")), data if isinstance(data, dict) else {}


def outputs(history: dict[str, Any]) -> list[Output]:
    """All files that a prompt has saved, by the record of `Client.history`, node by node as in the prompt."""
    return list(_files(history))


def _files(history: dict[str, Any]) -> Iterator[Output]:
    # The record has them as they ended, which differs from run to run where nodes wait for nothing of each other.
    _, _, graph, *_ = history.get("prompt") or (0, "", {})
    places = {node: place for place, node in enumerate(graph)}
    made = history.get("outputs", {})
    for node, results in sorted(made.items(), key=lambda item: (places.get(item[0], len(places)), item[0])):
        for key in FILE_KEYS:
            for item in results.get(key) or ():
                # Any pack may list there what it likes.
                if isinstance(item, dict) and isinstance(name := item.get("filename"), str):
                    yield Output(node, name, item.get("subfolder") or "", item.get("type") or "output")


def explain_refusal(answer: dict[str, Any]) -> str:
    """One sentence for each node that the server found wrong with a prompt."""
    sentences = [
        f"Node {node} ({report.get('class_type')}): {_sentence(error)}"
        for node, report in (answer.get("node_errors") or {}).items()
        for error in report.get("errors", [])
    ]
    return "ComfyUI refused the prompt. " + (" ".join(sentences) or _sentence(answer.get("error")))


def _sentence(error: Any) -> str:
    parts = [error.get("message"), error.get("details")] if isinstance(error, dict) else [error]
    return ": ".join(str(part).rstrip(".") for part in parts if part) + "."


def explain_failure(data: dict[str, Any]) -> str:
    """One sentence from an `execution_error` event."""
    kind = str(data.get("exception_type", "error")).rsplit(".", 1)[-1]
    message = str(data.get("exception_message", "")).strip()
    return f"Node {data.get('node_id')} ({data.get('node_type')}) failed with {kind}: {message}"
