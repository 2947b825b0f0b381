"""What the scripts for the providers' own SDKs share.

Each SDK is told a base URL and a key of the gateway, and nothing else. `tests/stories/clients/native` plays the
providers; in a text that is to be spoken the first word tells them what to do, the rest makes the request one of its
kind. `never` must not reach them.
"""

import hashlib
import os
import ssl
from contextlib import contextmanager
from types import SimpleNamespace

import websockets.sync.client as sockets
from websockets.exceptions import InvalidStatus

from common import GATEWAY, check, equal

# The same gateway by a name of its own that stands for the one provider, in clear text and over TLS.
BY_HOST = os.environ["BY_HOST"]
BY_HOST_TLS = os.environ["BY_HOST_TLS"]
BY_PATH_TLS = os.environ["BY_PATH_TLS"]
# Keys: one without the right to pass anything through, one that may speak only.
PLAIN_KEY = os.environ["PLAIN_KEY"]
SPEECH_KEY = os.environ["SPEECH_KEY"]

# Fern's clients take what arrives in portions of 1024 bytes.
PIECES = (1_024, 5_120, 33_856)


def older_tls(*arguments, **options):
    context = ssl.create_default_context(*arguments, **options)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


# Over TLS 1.3 the SDKs' library sometimes hears nothing of its handshake, whatever server it is connected to: it reads
# in one thread and writes in another. Everything else here may speak TLS 1.3.
sockets.ssl_module = SimpleNamespace(**{**vars(sockets.ssl_module), "create_default_context": older_tls})


def places(provider, version=""):
    """The base URLs at which `provider` is found."""
    return {
        "by_path": f"{GATEWAY}/p/{provider}{version}",
        "by_host": BY_HOST + version,
        "by_path_tls": f"{BY_PATH_TLS}/p/{provider}{version}",
        "by_host_tls": BY_HOST_TLS + version,
    }


def everywhere(bases):
    """The check is done once with each of these base URLs, and is told the name and the URL."""

    def register(function):
        for name, base in bases.items():
            check(at(function, name, base))

    def at(function, name, base):
        def here():
            return function(name, base)

        here.__name__ = f"{function.__name__}_{name}"
        return here

    return register


def watch(http):
    """Compares what the SDK sends, by its library `http`, with what the provider says it has heard."""

    class Watched(http.SyncByteStream, http.AsyncByteStream):
        def __init__(self, stream):
            self.stream, self.digest = stream, hashlib.sha256()

        def see(self, piece):
            self.digest.update(piece)
            return piece

        def __iter__(self):
            return map(self.see, self.stream)

        async def __aiter__(self):
            async for piece in self.stream:
                yield self.see(piece)

        def compare(self, request, answer):
            if answer.headers["x-aulos-origin"] == "provider":
                equal(answer.headers["x-heard"], self.digest.hexdigest(), "the body at the provider")
                sent, heard = request.url.raw_path.decode(), answer.headers["x-heard-at"]
                # A version at its front may be the base URL's.
                assert sent.endswith(heard.removeprefix("/v1")), f"{sent} came as {heard}"

    def send(client, request, **options):
        request.stream = Watched(request.stream)
        answer = send_sync(client, request, **options)
        request.stream.compare(request, answer)
        return answer

    async def send_later(client, request, **options):
        request.stream = Watched(request.stream)
        answer = await send_async(client, request, **options)
        request.stream.compare(request, answer)
        return answer

    send_sync, send_async = http.Client.send, http.AsyncClient.send
    http.Client.send, http.AsyncClient.send = send, send_later


@contextmanager
def raises(kind, status, origin):
    """The body must raise this error, of this status, said by the provider or by the gateway; it is then looked at."""
    caught = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
        equal((error.status_code, error.headers["x-aulos-origin"]), (status, origin), error.body)
        assert error.headers["x-aulos-request-id"]
        assert "sk-" not in str(error), "the provider's credential"
    else:
        raise AssertionError(f"no {kind.__name__}")


@contextmanager
def turned_away(status, words):
    """The body must not get a WebSocket: all SDKs hand on what their library says of it."""
    try:
        yield
    except InvalidStatus as error:
        equal(error.response.status_code, status)
        assert words.encode() in error.response.body, error.response.body
    else:
        raise AssertionError("it was let in")


def digest(data):
    return hashlib.sha256(data).hexdigest()
