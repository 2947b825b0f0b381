"""What people do with ElevenLabs' own SDK, through a gateway."""

import asyncio
import base64
import io
import sys

import httpx
from elevenlabs import AudioFormat, CommitStrategy, RealtimeEvents, VoiceSettings
from elevenlabs.client import AsyncElevenLabs, ElevenLabs
from elevenlabs.core.api_error import ApiError
from elevenlabs.errors import UnprocessableEntityError

from common import GATEWAY, KEY, SOUND, Pieces, breaks, check, equal, main
from native import (
    BY_HOST_TLS, BY_PATH_TLS, PIECES, PLAIN_KEY, SPEECH_KEY, digest, everywhere, places, raises, turned_away, watch,
)

watch(httpx)

PLACES = places("elevenlabs")
VOICE = "JBFqnCBsd6RMkjVDRZzb"
ONCE = {"max_retries": 0}


def options(base=PLACES["by_path"], key=KEY):
    return {"base_url": base, "api_key": key, "timeout": 15}


client = ElevenLabs(**options())


def speak(text, with_client=client, **more):
    return b"".join(with_client.text_to_speech.convert(VOICE, text=text, **more))


# Speech


@everywhere(PLACES)
def speech_whole(place, base):
    settings = VoiceSettings(stability=0.5, similarity_boost=0.75)
    more = {"model_id": "eleven_v3", "output_format": "mp3_44100_128", "voice_settings": settings}
    equal(speak(f"plain Grüße, 世界 🌍 {place}", ElevenLabs(**options(base)), **more), SOUND)


@everywhere(PLACES)
def speech_piece_by_piece(place, base):
    other, pieces = ElevenLabs(**options(base)), Pieces(PIECES)
    for chunk in other.text_to_speech.stream(VOICE, text=f"pieces {place}", optimize_streaming_latency=0):
        if pieces.complete(chunk):
            speak(f"next {place}", other)
    pieces.check()


@check
def speech_headers():
    with client.text_to_speech.with_raw_response.convert(VOICE, text="plain headers") as answer:
        equal(b"".join(answer.data), SOUND)
    own = {name: value for name, value in answer.headers.items() if name.startswith("x-aulos-")}
    assert own.pop("x-aulos-request-id")
    equal(own, {"x-aulos-origin": "provider", "x-aulos-provider": "elevenlabs", "x-aulos-attempts": "1"})
    equal((answer.headers["character-cost"], answer.headers["x-request-id"]), ("13", "req_vendor"))
    assert "set-cookie" not in answer.headers


@check
def speech_broken():
    with breaks() as caught:
        speak("break whole")
    return caught[0]


# Transcripts


@everywhere(PLACES)
def transcript(place, base):
    file = io.BytesIO(SOUND)
    file.name = "Grüße.wav"
    for given in (file, SOUND, ("speech.mp3", SOUND, "audio/mpeg")):
        heard = ElevenLabs(**options(base)).speech_to_text.convert(
            model_id="scribe_v2", file=given, diarize=True, keyterms=["aulos", "Grüße"]
        )
        equal((heard.text, heard.language_code), ("I heard it.", "eng"))


@check
def transcript_long():
    heard = client.speech_to_text.convert(model_id="scribe_v2", file=io.BytesIO(SOUND * 250))
    equal(heard.text, "I heard it.")


# The rest of its API


@everywhere(PLACES)
def voices(place, base):
    other = ElevenLabs(**options(base))
    equal([(voice.voice_id, voice.name) for voice in other.voices.get_all().voices], [(VOICE, "George")])
    found = other.voices.search(search="Grüße & co/?+", page_size=2, voice_ids=["a b", "c%2Fd"])
    equal(([voice.name for voice in found.voices], found.has_more), (["George"], False))
    equal(other.voices.delete("a%2Fb ü").status, "ok")


@check
def retried():
    equal(client.voices.get("thrice").name, "George")


# Errors


@check
def error_of_the_provider():
    with raises(ApiError, 401, "provider") as caught:
        speak("credential")
    equal(caught[0].body["detail"]["status"], "invalid_api_key")
    with raises(UnprocessableEntityError, 422, "provider") as caught:
        speak("refuse")
    equal(caught[0].body["detail"][0]["loc"], ["body", "text"])
    with raises(ApiError, 429, "provider") as caught:
        speak("limit", request_options=ONCE)
    equal(caught[0].headers["retry-after"], "7")
    with raises(ApiError, 503, "provider") as caught:
        speak("page", request_options=ONCE)
    assert "<h1>" in caught[0].body


def refused(status, code, ask):
    with raises(ApiError, status, "aulos") as caught:
        ask()
    detail = caught[0].body["detail"]
    equal(detail["status"], code)
    assert detail["message"].endswith("."), detail


@everywhere(PLACES)
def error_wrong_key(place, base):
    other = ElevenLabs(**options(base, key="omx_live_wrong"))
    refused(401, "invalid_api_key", lambda: speak("never", other))
    refused(401, "invalid_api_key", lambda: other.voices.get_all())
    refused(401, "invalid_api_key", lambda: other.speech_to_text.convert(model_id="scribe_v2", file=SOUND * 25))


@everywhere(PLACES)
def error_without_the_right(place, base):
    other = ElevenLabs(**options(base, key=PLAIN_KEY))
    refused(403, "forbidden", lambda: speak("never", other))
    other = ElevenLabs(**options(base, key=SPEECH_KEY))
    refused(403, "forbidden", lambda: other.voices.delete("never"))
    equal(speak(f"plain allowed {place}", other), SOUND)


@check
def error_unreachable():
    other = ElevenLabs(**options(f"{GATEWAY}/p/gone"))
    refused(502, "upstream_unavailable", lambda: speak("never", other, request_options=ONCE))


@check
def error_nowhere():
    with raises(ApiError, 404, "aulos") as caught:
        speak("never", ElevenLabs(**options(f"{GATEWAY}/p/nowhere")))
    assert "nowhere" in caught[0].body["error"]["message"]


# Realtime


@everywhere({"by_path_tls": BY_PATH_TLS + "/p/elevenlabs", "by_host_tls": BY_HOST_TLS})
def realtime_speech(place, base):
    """It insists on TLS, but goes where the base URL says."""
    other = ElevenLabs(**options(base))
    words = ["Hello, ", "how are you? ", "Grüße, ", "世界 🌍."]
    got = other.text_to_speech.convert_realtime(VOICE, text=iter(words), model_id="eleven_flash_v2_5")
    equal(b"".join(got), SOUND)
    try:
        b"".join(other.text_to_speech.convert_realtime(VOICE, text=iter(["stumble "]), model_id="eleven_flash_v2_5"))
    except ApiError as error:
        equal((error.status_code, error.body["error"]), (1008, "quota_exceeded"))
    else:
        raise AssertionError("no error")


@everywhere(PLACES)
async def realtime_transcript(place, base):
    other = AsyncElevenLabs(**options(base))
    connection = await other.speech_to_text.realtime.connect({
        "model_id": "scribe_v2_realtime", "audio_format": AudioFormat.PCM_16000, "sample_rate": 16_000,
        "commit_strategy": CommitStrategy.MANUAL, "keyterms": ["a b", "Grüße"],
    })
    heard, closed = asyncio.Queue(), asyncio.Event()
    connection.on(RealtimeEvents.COMMITTED_TRANSCRIPT, heard.put_nowait)
    connection.on(RealtimeEvents.CLOSE, closed.set)
    sent = ""
    for turn in range(2):
        for at in range(0, len(SOUND), 3_000):
            part = base64.b64encode(SOUND[at : at + 3_000]).decode()
            await connection.send({"audio_base_64": part})
            sent += part
        await connection.commit()
        equal((await heard.get())["text"], digest(sent.encode()), f"turn {turn}")
    await connection.close()
    await closed.wait()


@check
async def realtime_refused():
    for key, status, code in (("omx_live_wrong", 401, "invalid_api_key"), (PLAIN_KEY, 403, "forbidden")):
        with turned_away(status, f'{{"detail":{{"status":"{code}",'):
            await AsyncElevenLabs(**options(key=key)).speech_to_text.realtime.connect({
                "model_id": "never", "audio_format": AudioFormat.PCM_16000, "sample_rate": 16_000,
            })


# Async


@check
async def async_speech():
    other = AsyncElevenLabs(**options())

    async def one(text):
        return b"".join([chunk async for chunk in other.text_to_speech.convert(VOICE, text=text)])

    answers = await asyncio.gather(*(one(f"plain async {i}") for i in range(20)))
    assert all(answer == SOUND for answer in answers)
    pieces = Pieces(PIECES)
    async for chunk in other.text_to_speech.stream(VOICE, text="pieces async"):
        if pieces.complete(chunk):
            await one("next async")
    pieces.check()
    heard = await other.speech_to_text.convert(model_id="scribe_v2", file=SOUND * 25)
    equal(heard.text, "I heard it.")


if __name__ == "__main__":
    sys.exit(main("elevenlabs"))
