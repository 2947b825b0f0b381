"""What people do with Deepgram's own SDK, through a gateway."""

import asyncio
import sys

import httpx
from deepgram import AsyncDeepgramClient, DeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment
from deepgram.errors import BadRequestError
from deepgram.speak.v1.types import SpeakV1Text

from common import GATEWAY, KEY, SOUND, Pieces, breaks, check, equal, main
from native import PIECES, PLAIN_KEY, SPEECH_KEY, digest, everywhere, places, raises, turned_away, watch

watch(httpx)

PLACES = places("deepgram")
VOICE = "aura-2-thalia-en"


def options(base=PLACES["by_path"], key=KEY, **more):
    """Its SDK takes no base URL, but an environment of them."""
    sockets = base.replace("http", "ws", 1)
    environment = DeepgramClientEnvironment(base=base, production=sockets, agent=sockets, agent_rest=base)
    return {"environment": environment, "api_key": key, "timeout": 15, **more}


client = DeepgramClient(**options())


def speak(text, with_client=client, **more):
    return b"".join(with_client.speak.v1.audio.generate(text=text, model=VOICE, **more))


def words(heard):
    return heard.results.channels[0].alternatives[0].transcript


# Speech


@everywhere(PLACES)
def speech_whole(place, base):
    other = DeepgramClient(**options(base))
    equal(speak(f"plain Grüße, 世界 🌍 {place}", other, encoding="linear16", container="wav", sample_rate=24_000), SOUND)


@everywhere(PLACES)
def speech_piece_by_piece(place, base):
    other, pieces = DeepgramClient(**options(base)), Pieces(PIECES)
    for chunk in other.speak.v1.audio.generate(text=f"pieces {place}", model=VOICE):
        if pieces.complete(chunk):
            speak(f"next {place}", other)
    pieces.check()


@check
def speech_broken():
    with breaks() as caught:
        speak("break whole")
    return caught[0]


# Transcripts


@everywhere(PLACES)
def transcript(place, base):
    media = DeepgramClient(**options(base)).listen.v1.media
    asked = {"model": "nova-3", "smart_format": True, "keyterm": ["a b", "Grüße&co"], "tag": "c/d"}
    equal(words(media.transcribe_file(request=SOUND, **asked)), "I heard it.")
    equal(words(media.transcribe_file(request=iter([SOUND[:7], SOUND[7:]]), **asked)), "I heard it.")
    equal(words(media.transcribe_url(url="https://example.com/a.wav?b=c", **asked)), "I heard it.")


@check
def transcript_long():
    equal(words(client.listen.v1.media.transcribe_file(request=SOUND * 250, model="nova-3")), "I heard it.")


# The rest of its API


@everywhere(PLACES)
def projects(place, base):
    other = DeepgramClient(**options(base))
    equal([project.name for project in other.manage.v1.projects.list().projects], ["house"])
    equal(other.manage.v1.projects.keys.delete("a%2Fb ü", "c").message, "done")


@check
def retried():
    equal(client.manage.v1.projects.get("thrice").name, "house")


@check
def access_token():
    other = DeepgramClient(**options(key=None), access_token=KEY)
    equal(speak("plain token", other), SOUND)


# Errors


@check
def error_of_the_provider():
    with raises(ApiError, 401, "provider") as caught:
        speak("credential")
    equal(caught[0].body["err_code"], "INVALID_AUTH")
    with raises(BadRequestError, 400, "provider") as caught:
        speak("refuse")
    equal(caught[0].body["err_code"], "INVALID_QUERY_PARAMETER")
    once = DeepgramClient(**options(), max_retries=0)
    with raises(ApiError, 429, "provider") as caught:
        speak("limit", once)
    equal(caught[0].headers["retry-after"], "7")
    with raises(ApiError, 503, "provider") as caught:
        speak("page", once)
    assert "<h1>" in caught[0].body


def refused(status, code, ask):
    with raises(ApiError, status, "aulos") as caught:
        ask()
    body = caught[0].body
    equal((body["err_code"], body["request_id"]), (code, caught[0].headers["x-aulos-request-id"]))
    assert body["err_msg"].endswith("."), body


@everywhere(PLACES)
def error_wrong_key(place, base):
    other = DeepgramClient(**options(base, key="omx_live_wrong"))
    refused(401, "INVALID_API_KEY", lambda: speak("never", other))
    refused(401, "INVALID_API_KEY", lambda: other.manage.v1.projects.list())
    media = other.listen.v1.media
    refused(401, "INVALID_API_KEY", lambda: media.transcribe_file(request=SOUND * 25, model="never"))


@everywhere(PLACES)
def error_without_the_right(place, base):
    other = DeepgramClient(**options(base, key=PLAIN_KEY))
    refused(403, "FORBIDDEN", lambda: speak("never", other))
    other = DeepgramClient(**options(base, key=SPEECH_KEY))
    refused(403, "FORBIDDEN", lambda: other.manage.v1.projects.list())
    equal(speak(f"plain allowed {place}", other), SOUND)


@check
def error_unreachable():
    other = DeepgramClient(**options(f"{GATEWAY}/p/gone"), max_retries=0)
    refused(502, "UPSTREAM_UNAVAILABLE", lambda: speak("never", other))


# Live


@everywhere(PLACES)
def live(place, base):
    other = DeepgramClient(**options(base))
    asked = {"model": "nova-3", "encoding": "linear16", "sample_rate": 16_000, "keyterm": ["a b", "Grüße&co"]}
    with other.listen.v1.connect(**asked) as session:
        equal(session.recv().type, "Metadata")
        for turn in range(1, 3):
            for at in range(0, len(SOUND), 3_000):
                session.send_media(SOUND[at : at + 3_000])
            session.send_keep_alive()
            session.send_finalize()
            heard = session.recv()
            equal(heard.channel.alternatives[0].transcript, digest(SOUND * turn), f"turn {turn}")
        session.send_close_stream()
        seen = []
        for kind in (EventType.OPEN, EventType.MESSAGE, EventType.ERROR, EventType.CLOSE):
            session.on(kind, lambda what, kind=kind: seen.append((kind, getattr(what, "type", what))))
        session.start_listening()
    equal(seen, [(EventType.OPEN, None), (EventType.MESSAGE, "Metadata"), (EventType.CLOSE, None)])


@check
def live_long():
    """Much in both directions at once: the provider speaks while it is still being told what."""
    with client.speak.v1.connect(model=VOICE, encoding="linear16", sample_rate=24_000) as session:
        for _ in range(25):
            session.send_text(SpeakV1Text(text="x" * 10_000))
        got = b""
        while len(got) < 25 * len(SOUND):
            got += session.recv()
        equal(got, SOUND * 25)
        session.send_close()


@check
async def live_async():
    async with AsyncDeepgramClient(**options()).listen.v1.connect(model="nova-3") as session:
        equal((await session.recv()).type, "Metadata")
        await session.send_media(SOUND)
        await session.send_finalize()
        equal((await session.recv()).channel.alternatives[0].transcript, digest(SOUND))
        await session.send_close_stream()
        equal((await session.recv()).type, "Metadata")


@check
def live_refused():
    for key, model, status, code in (
        ("omx_live_wrong", "never", 401, "INVALID_API_KEY"),
        (PLAIN_KEY, "never", 403, "FORBIDDEN"),
        (KEY, "refuse", 402, "ASR_PAYMENT_REQUIRED"),
    ):
        with turned_away(status, f'"err_code":"{code}"'):
            with DeepgramClient(**options(key=key)).listen.v1.connect(model=model):
                pass


# Async


@check
async def async_speech():
    other = AsyncDeepgramClient(**options())

    async def one(text):
        return b"".join([chunk async for chunk in other.speak.v1.audio.generate(text=text, model=VOICE)])

    answers = await asyncio.gather(*(one(f"plain async {i}") for i in range(20)))
    assert all(answer == SOUND for answer in answers)
    heard = await other.listen.v1.media.transcribe_file(request=SOUND * 25, model="nova-3")
    equal(words(heard), "I heard it.")


if __name__ == "__main__":
    sys.exit(main("deepgram-sdk"))
