"""What people do with openai-python, through a gateway that does not look at it: a base URL below `/p/`."""

import asyncio
import base64
import io
import sys

import httpx2
import openai
from openai import AsyncOpenAI, OpenAI

from common import GATEWAY, KEY, SOUND, Pieces, breaks, check, equal, main, raises
from native import PIECES, PLAIN_KEY, SPEECH_KEY, digest, everywhere, places, turned_away, watch

watch(httpx2)

PLACES = places("openai", "/v1")
# The base URL of the provider ends in its version: it need not be said, and is not said twice.
BASES = {**PLACES, "by_short_path": f"{GATEWAY}/p/openai"}
REALTIME = "gpt-realtime"


def options(base=PLACES["by_path"], key=KEY, retries=0):
    return {"base_url": base, "api_key": key, "max_retries": retries, "timeout": 15}


client = OpenAI(**options())


def says(text):
    return {"model": "tts-1", "input": text, "voice": "alloy"}


def speak(text, with_client=client):
    return with_client.audio.speech.create(**says(text)).content


# Speech, transcripts, models


@everywhere(BASES)
def speech_whole(place, base):
    equal(speak(f"plain Grüße, 世界 🌍 {place}", OpenAI(**options(base))), SOUND)


@everywhere(BASES)
def speech_piece_by_piece(place, base):
    other, pieces = OpenAI(**options(base)), Pieces(PIECES)
    with other.audio.speech.with_streaming_response.create(**says(f"pieces {place}")) as answer:
        for chunk in answer.iter_bytes():
            if pieces.complete(chunk):
                speak(f"next {place}", other)
    pieces.check()


@check
def speech_broken():
    with breaks() as caught:
        speak("break whole")
    return caught[0]


@check
def speech_retried():
    equal(speak("thrice sync", OpenAI(**options(retries=2))), SOUND)


@everywhere(BASES)
def transcript(place, base):
    file = io.BytesIO(SOUND)
    file.name = "Grüße.wav"
    other = OpenAI(**options(base))
    for given in (file, SOUND, ("speech.mp3", SOUND, "audio/mpeg"), SOUND * 250):
        heard = other.audio.transcriptions.create(file=given, model="whisper-1", language="en")
        equal(heard.text, "I heard it.")


@everywhere(BASES)
def models(place, base):
    equal([model.id for model in OpenAI(**options(base)).models.list()], ["tts-1", "ft:whisper-1:a/b"])


@everywhere(BASES)
def endpoint_unknown(place, base):
    other = OpenAI(**options(base))
    asked = {"words": "Grüße, 世界 🌍", "numbers": [1, 2.50]}
    query = {"a b": "c/d&e", "list": ["x", "y"]}
    answer = other.post("/nobody/knows:this@all", body=asked, options={"params": query}, cast_to=object)
    equal(answer, {"object": "unknown"})
    equal(other.delete("/nobody/knows:this@all", cast_to=object), {"object": "unknown"})


# Errors


@check
def error_of_the_provider():
    for text, kind, code, param in (
        ("credential", openai.AuthenticationError, "invalid_api_key", None),
        ("refuse", openai.BadRequestError, "unsupported_parameter", "speed"),
        ("limit", openai.RateLimitError, "rate_limit_exceeded", None),
    ):
        with raises(kind, code=code, param=param) as caught:
            speak(text)
        equal(caught[0].response.headers["x-aulos-origin"], "provider")
        equal(caught[0].request_id, "req_vendor")
        assert "sk-" not in str(caught[0]), "the provider's credential"
    with raises(openai.InternalServerError, status=503) as caught:
        speak("page")
    assert "<h1>" in str(caught[0].body)


@everywhere(BASES)
def error_wrong_key(place, base):
    other = OpenAI(**options(base, key="omx_live_wrong", retries=2))
    for ask in (
        lambda: speak("never", other),
        lambda: other.models.list(),
        lambda: other.audio.transcriptions.create(file=SOUND * 25, model="never"),
    ):
        with raises(openai.AuthenticationError, code="invalid_api_key"):
            ask()


@everywhere(BASES)
def error_without_the_right(place, base):
    with raises(openai.PermissionDeniedError, code="forbidden"):
        speak("never", OpenAI(**options(base, key=PLAIN_KEY)))
    other = OpenAI(**options(base, key=SPEECH_KEY))
    with raises(openai.PermissionDeniedError, code="forbidden"):
        other.models.list()
    equal(speak(f"plain allowed {place}", other), SOUND)


@check
def error_unreachable():
    with raises(openai.InternalServerError, code="upstream_unavailable", status=502):
        speak("never", OpenAI(**options(f"{GATEWAY}/p/gone/v1")))


# Realtime


class Talk:
    """What is said in a session, and what has to come back."""

    def __init__(self):
        part = range(0, len(SOUND), 3_000)
        self.parts = [base64.b64encode(SOUND[at : at + 3_000]).decode() for at in part]
        self.sound, self.text = b"", None

    def complete(self, event):
        """Takes an event. True: the answer is whole."""
        if event.type == "response.output_audio.delta":
            self.sound += base64.b64decode(event.delta)
        elif event.type == "response.output_audio_transcript.done":
            self.text = event.transcript
        return event.type == "response.done"

    def check(self):
        equal((self.sound, self.text), (SOUND, digest("".join(self.parts).encode())))


@everywhere(BASES)
def realtime(place, base):
    talk = Talk()
    with OpenAI(**options(base)).realtime.connect(model=REALTIME) as session:
        equal(session.recv().type, "session.created")
        session.session.update(session={"type": "realtime", "instructions": "Grüße"})
        equal(session.recv().session.instructions, "Grüße")
        for part in talk.parts:
            session.input_audio_buffer.append(audio=part)
        session.response.create()
        while not talk.complete(session.recv()):
            pass
    talk.check()


@check
async def realtime_async():
    talk = Talk()
    async with AsyncOpenAI(**options()) as other:
        async with other.realtime.connect(model=REALTIME) as session:
            for part in talk.parts:
                await session.input_audio_buffer.append(audio=part)
            await session.response.create()
            async for event in session:
                if talk.complete(event):
                    break
    talk.check()


@check
def realtime_refused():
    for key, status, code in (("omx_live_wrong", 401, "invalid_api_key"), (PLAIN_KEY, 403, "forbidden")):
        with turned_away(status, f'"code":"{code}"'):
            with OpenAI(**options(key=key)).realtime.connect(model="never"):
                pass


# Async


@check
async def async_speech():
    async with AsyncOpenAI(**options()) as other:
        answers = await asyncio.gather(*(other.audio.speech.create(**says(f"plain async {i}")) for i in range(20)))
        assert all(answer.content == SOUND for answer in answers)
        heard = await other.audio.transcriptions.create(file=SOUND * 25, model="whisper-1")
        equal(heard.text, "I heard it.")


if __name__ == "__main__":
    sys.exit(main())
