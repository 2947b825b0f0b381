"""What people upload with openai-python, done to a gateway.

`tests/stories/clients/uploads.rs` starts the gateway and plays the provider, which answers with the SHA-256 of the
file it got: the first word of `prompt` tells it what to do, the rest makes the request one of its kind. `never` must
not reach it, or not to its end.
"""

import array
import asyncio
import hashlib
import io
import os
import pathlib
import sys
import tempfile

import openai
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

from common import API_VERSION, GATEWAY, KEY, azure, breaks, check, equal, main, options, raises

NARROW_GATEWAY = os.environ["NARROW_GATEWAY"]


def recording(size):
    """No two places in it are alike."""
    words = array.array("I", range(size // 4))
    if sys.byteorder != "little":
        words.byteswap()
    return words.tobytes()


SHORT = recording(100_000)
LONG = recording(30_000_000)
HEARD = {len(sound): hashlib.sha256(sound).hexdigest() for sound in (SHORT, LONG)}
MODEL = "openai/whisper-1"
# A recording that is sent takes its time.
PATIENT = {"timeout": 60}

folder = tempfile.TemporaryDirectory()
speech_wav = pathlib.Path(folder.name, "speech.wav")
speech_wav.write_bytes(SHORT)
long_mp3 = pathlib.Path(folder.name, "long.mp3")
long_mp3.write_bytes(LONG)

client = OpenAI(**options(**PATIENT))


def says(text, file=SHORT, model=MODEL, **more):
    return {"file": file, "model": model, "prompt": text, **more}


def transcribed(text, file=SHORT, **more):
    return client.audio.transcriptions.create(**says(text, file, **more)).text


def named(name):
    file = io.BytesIO(SHORT)
    file.name = name
    return file


# Files


@check
def upload_path():
    equal(transcribed("plain path", speech_wav), HEARD[len(SHORT)])


@check
def upload_open_file():
    with speech_wav.open("rb") as file:
        answer = client.audio.transcriptions.create(**says("plain open", file, language="en", temperature=0.2))
    equal(answer.text, HEARD[len(SHORT)])
    equal((answer.usage.type, answer.usage.seconds), ("duration", 9))


@check
def upload_bytes():
    equal(transcribed("plain bytes", SHORT), HEARD[len(SHORT)])


@check
def upload_bytesio():
    equal(transcribed("plain bytesio", io.BytesIO(SHORT)), HEARD[len(SHORT)])
    equal(transcribed("plain named", named("note.mp3")), HEARD[len(SHORT)])


@check
def upload_tuple():
    equal(transcribed("plain tuple", ('Grüße "世界".wav', SHORT, "audio/wave")), HEARD[len(SHORT)])


@check
def upload_long():
    with long_mp3.open("rb") as file:
        equal(transcribed("plain long", file), HEARD[len(LONG)])
    equal(transcribed("plain long bytes", LONG), HEARD[len(LONG)])


# Answers


@check
def format_text():
    heard = HEARD[len(SHORT)]
    for form, want in (
        ("text", f"{heard}\n"),
        ("srt", f"1\n00:00:00,000 --> 00:00:08,470\n{heard}\n\n"),
        ("vtt", f"WEBVTT\n\n00:00:00.000 --> 00:00:08.470\n{heard}\n\n"),
    ):
        equal(client.audio.transcriptions.create(**says(f"plain {form}", response_format=form)), want)


@check
def format_verbose():
    asked = says("plain verbose", response_format="verbose_json", timestamp_granularities=["word", "segment"])
    answer = client.audio.transcriptions.create(**asked)
    heard = HEARD[len(SHORT)]
    equal((answer.text, answer.duration, answer.usage.seconds), (heard, 8.47, 9))
    equal(([word.word for word in answer.words], [part.text for part in answer.segments]), ([heard], [heard]))


@check
def translation():
    equal(client.audio.translations.create(**says("plain translation", speech_wav)).text, HEARD[len(SHORT)])
    asked = says("plain translation verbose", response_format="verbose_json")
    equal(client.audio.translations.create(**asked).duration, 8.47)


class Transcript:
    """Collects events. The provider sends the second only when the first has arrived."""

    def __init__(self):
        self.words, self.done = [], None

    def take(self, event):
        """True: the provider waits to hear that it arrived."""
        if event.type == "transcript.text.done":
            self.done = event
            return False
        self.words.append(event.delta)
        return len(self.words) == 1

    def check(self, heard=HEARD[len(SHORT)]):
        equal(("".join(self.words), len(self.words), self.done.text), (heard, 2, heard))
        equal(self.done.usage.total_tokens, 59)


@check
def events():
    transcript = Transcript()
    for event in client.audio.transcriptions.create(**says("events sync", speech_wav, stream=True)):
        if transcript.take(event):
            transcribed("next sync")
    transcript.check()


@check
def events_broken():
    got = 0
    with breaks() as caught:
        for _ in client.audio.transcriptions.create(**says("breakoff events", stream=True)):
            got += 1
    equal(got, 1)
    return caught[0]


@check
def events_error():
    got = 0
    try:
        for _ in client.audio.transcriptions.create(**says("stumble events", stream=True)):
            got += 1
    except openai.APIError as error:
        equal((got, error.message, error.code), (1, "Lost it.", "server_error"))
    else:
        raise AssertionError("no error")


@check
def raw_response():
    raw = client.audio.transcriptions.with_raw_response.create(**says("plain raw", model="my-stt"))
    own = {name: value for name, value in raw.headers.items() if name.startswith("x-aulos-")}
    assert own.pop("x-aulos-request-id")
    origin = {"x-aulos-origin": "provider", "x-aulos-provider": "openai"}
    equal(own, {**origin, "x-aulos-model": "whisper-1", "x-aulos-attempts": "1"})
    equal(raw.headers["x-request-id"], "req_vendor")
    equal(raw.parse().text, HEARD[len(SHORT)])


# Azure


def azure_by_path():
    """As one who has pasted the address of a deployment."""
    base = f"{GATEWAY}/openai/deployments/my-stt"
    return {"base_url": base, "api_key": KEY, "api_version": API_VERSION, "max_retries": 0, "timeout": 15}


@check
def azure_uploads():
    with AzureOpenAI(**azure()) as other:
        for text, model in (("plain azure alias", "my-stt"), ("plain azure", MODEL)):
            equal(other.audio.transcriptions.create(**says(text, speech_wav, model)).text, HEARD[len(SHORT)], model)
        asked = says("plain azure translation", model="my-stt")
        equal(other.audio.translations.create(**asked).text, HEARD[len(SHORT)])
        with raises(openai.NotFoundError, code="model_not_found", param="model"):
            other.audio.transcriptions.create(**says("never", model="nothing"))
    with AzureOpenAI(**azure_by_path()) as other:
        asked = says("plain azure path", model="whatever")
        equal(other.audio.transcriptions.create(**asked).text, HEARD[len(SHORT)])


@check
def azure_v1():
    with OpenAI(**options(base="/openai/v1")) as other:
        asked = says("plain azure v1", speech_wav)
        equal(other.audio.transcriptions.create(**asked).text, HEARD[len(SHORT)])


# Errors: nobody may have to guess from a connection that broke


def refused(gateway=GATEWAY, key=KEY, **asked):
    OpenAI(**options(key=key, gateway=gateway, retries=2, **PATIENT)).audio.transcriptions.create(**asked)


@check
def error_too_large():
    for file in (LONG, long_mp3, ("long.mp3", LONG, "audio/mpeg")):
        with raises(openai.APIStatusError, code="request_too_large", status=413) as caught:
            refused(NARROW_GATEWAY, **says("never", file))
        equal(caught[0].response.headers["x-should-retry"], "false")


@check
def error_not_found():
    for file in (SHORT, LONG):
        with raises(openai.NotFoundError, code="model_not_found", param="model"):
            refused(**says("never", file, model="nothing"))


@check
def error_authentication():
    for file in (SHORT, LONG):
        with raises(openai.AuthenticationError, code="invalid_api_key"):
            refused(key="wrong", **says("never", file))


@check
def error_bad_request():
    with raises(openai.BadRequestError, code="model_conflict", param="model"):
        refused(**says("never", LONG), extra_query={"model": "my-stt"})


@check
def error_of_the_provider():
    with raises(openai.BadRequestError, code="unsupported_value", param="file") as caught:
        refused(**says("refuse sync"))
    equal((caught[0].request_id, caught[0].response.headers["x-aulos-origin"]), ("req_vendor", "provider"))


@check
def error_early():
    for how in ("drains", "lingers", "closes"):
        with raises(openai.RateLimitError, code="rate_limit_exceeded") as caught:
            client.audio.transcriptions.create(**says("early", LONG), extra_headers={"x-early": how})
        equal((caught[0].response.headers["retry-after"], caught[0].request_id), ("7", "req_vendor"), how)


# Retries


@check
def retry_until_served():
    other = OpenAI(**options(retries=2))
    with speech_wav.open("rb") as file:
        equal(other.audio.transcriptions.create(**says("thrice open", file)).text, HEARD[len(SHORT)])
    equal(other.audio.transcriptions.create(**says("thrice bytes")).text, HEARD[len(SHORT)])


# Async


@check
async def async_files():
    with speech_wav.open("rb") as file:
        async with AsyncOpenAI(**options()) as other:
            create = other.audio.transcriptions.create
            files = {
                "path": speech_wav, "open": file, "bytes": SHORT, "bytesio": io.BytesIO(SHORT),
                "tuple": ("Grüße.wav", SHORT, "audio/wave"),
            }
            answers = await asyncio.gather(*(create(**says(f"plain async {how}", files[how])) for how in files))
    equal([answer.text for answer in answers], [HEARD[len(SHORT)]] * len(files))


@check
async def async_long():
    async with AsyncOpenAI(**options(**PATIENT)) as other:
        with long_mp3.open("rb") as file:
            answer = await other.audio.transcriptions.create(**says("plain async long", file))
    equal(answer.text, HEARD[len(LONG)])


@check
async def async_events():
    transcript = Transcript()
    async with AsyncOpenAI(**options()) as other:
        create = other.audio.transcriptions.create
        async for event in await create(**says("events async", speech_wav, stream=True)):
            if transcript.take(event):
                await create(**says("next async"))
    transcript.check()


@check
async def async_formats():
    async with AsyncOpenAI(**options()) as other:
        asked = says("plain async text", response_format="text")
        equal(await other.audio.transcriptions.create(**asked), f"{HEARD[len(SHORT)]}\n")
        answer = await other.audio.translations.create(**says("plain async translation", speech_wav))
        equal(answer.text, HEARD[len(SHORT)])
        raw = await other.audio.transcriptions.with_raw_response.create(**says("plain async raw"))
        equal((raw.headers["x-aulos-model"], raw.parse().text), ("whisper-1", HEARD[len(SHORT)]))


@check
async def async_azure():
    async with AsyncAzureOpenAI(**azure()) as other:
        answer = await other.audio.transcriptions.create(**says("plain async azure", speech_wav, "my-stt"))
    equal(answer.text, HEARD[len(SHORT)])


@check
async def async_errors():
    async with AsyncOpenAI(**options(gateway=NARROW_GATEWAY, retries=2, **PATIENT)) as other:
        with raises(openai.APIStatusError, code="request_too_large", status=413):
            await other.audio.transcriptions.create(**says("never", LONG))
    async with AsyncOpenAI(**options(retries=2, **PATIENT)) as other:
        with raises(openai.NotFoundError, code="model_not_found", param="model"):
            await other.audio.transcriptions.create(**says("never", LONG, model="nothing"))
        with raises(openai.BadRequestError, code="unsupported_value", param="file"):
            await other.audio.transcriptions.create(**says("refuse async"))
    async with AsyncOpenAI(**options(key="wrong", **PATIENT)) as other:
        with raises(openai.AuthenticationError, code="invalid_api_key"):
            await other.audio.transcriptions.create(**says("never", LONG))


if __name__ == "__main__":
    sys.exit(main())
