"""What people do with openai-python, done to a gateway: speech, chats, models.

`tests/stories/clients/speech.rs` starts the gateway and plays the provider: the first word of `input`, or of a chat's
first message, tells it what to do, the rest makes the request one of its kind. `never` must not reach it.
"""

import asyncio
import base64
import json
import os
import sys
import tempfile
import time

import openai
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

from common import PIECES, SOUND, Pieces, azure, breaks, check, equal, main, options, raises

BUSY_GATEWAY = os.environ["BUSY_GATEWAY"]
LIMITED_KEY = os.environ["LIMITED_KEY"]

MODEL = "openai/tts-1"
CHAT = {"model": "openai/gpt-audio", "modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "pcm16"}}

client = OpenAI(**options())


def says(text, model=MODEL, **more):
    return {"model": model, "input": text, "voice": "alloy", **more}


def asks(text, **more):
    return {**CHAT, "messages": [{"role": "user", "content": text}], **more}


def go_on(tag):
    client.audio.speech.create(**says(f"next {tag}"))


# Speech


@check
def speech_create():
    answer = client.audio.speech.create(
        **says("plain Grüße, 世界 🌍", instructions="calm", response_format="opus", speed=1.25)
    )
    equal(answer.content, SOUND)
    equal(answer.read(), SOUND)
    equal(b"".join(answer.iter_bytes(1024)), SOUND)
    equal(answer.response.headers["content-type"], "audio/mpeg")


@check
def speech_write_to_file():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "speech.mp3")
        client.audio.speech.create(**says("plain file")).write_to_file(path)
        with open(path, "rb") as file:
            equal(file.read(), SOUND)
        with client.audio.speech.with_streaming_response.create(**says("plain file")) as answer:
            answer.stream_to_file(path)
        with open(path, "rb") as file:
            equal(file.read(), SOUND)


@check
def speech_piece_by_piece():
    pieces = Pieces()
    with client.audio.speech.with_streaming_response.create(**says("pieces sync")) as answer:
        for chunk in answer.iter_bytes():
            if pieces.complete(chunk):
                go_on("sync")
    pieces.check()


@check
def speech_events():
    events = []
    with client.audio.speech.with_streaming_response.create(**says("events sync", stream_format="sse")) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line[6:]))
                if len(events) == 1:
                    go_on("sync")
    equal([event["type"] for event in events], ["speech.audio.delta", "speech.audio.delta", "speech.audio.done"])
    equal(b"".join(base64.b64decode(event["audio"]) for event in events[:2]), SOUND)
    equal(events[2]["usage"]["total_tokens"], 115)


@check
def speech_left_early():
    with client.audio.speech.with_streaming_response.create(**says("leave sync")) as answer:
        equal(len(next(answer.iter_bytes())), PIECES[0])


@check
def speech_broken():
    with breaks() as caught:
        client.audio.speech.create(**says("break whole"))
    return caught[0]


@check
def speech_broken_stream():
    details = []
    for text in ("break streamed", "short streamed"):
        got = b""
        with breaks() as caught:
            with client.audio.speech.with_streaming_response.create(**says(text)) as answer:
                for chunk in answer.iter_bytes():
                    got += chunk
        equal(got, SOUND[: len(got)])
        assert 0 < len(got) < len(SOUND), len(got)
        details += caught
    return details


@check
def raw_response():
    raw = client.audio.speech.with_raw_response.create(**says("plain raw", model="my-tts"))
    own = {name: value for name, value in raw.headers.items() if name.startswith("x-aulos-")}
    assert own.pop("x-aulos-request-id")
    origin = {"x-aulos-origin": "provider", "x-aulos-provider": "openai"}
    equal(own, {**origin, "x-aulos-model": "tts-1", "x-aulos-attempts": "1"})
    equal(raw.headers["x-request-id"], "req_vendor")
    assert "set-cookie" not in raw.headers
    equal(raw.parse().content, SOUND)


@check
def provider_hint():
    hint = {"x-aulos-provider": "openai"}
    raw = client.audio.speech.with_raw_response.create(**says("plain hint", model="tts-1-hd"), extra_headers=hint)
    equal(raw.headers["x-aulos-model"], "tts-1-hd")


@check
def base_urls():
    for base in ("/v1", "/v1/", "/api/v1", "/openai/v1"):
        with OpenAI(**options(base=base)) as other:
            equal(other.audio.speech.create(**says(f"plain {base}")).content, SOUND, base)
            assert other.models.list().data, base


@check
def base_url_wrong():
    with raises(openai.NotFoundError, code="unknown_url") as caught:
        OpenAI(**options(base="")).audio.speech.create(**says("never"))
    assert "Set the base URL to `…/v1`" in caught[0].message, caught[0].message
    with raises(openai.NotFoundError, code="unknown_url") as caught:
        OpenAI(**options(base="/v1/v1")).audio.speech.create(**says("never"))
    assert "twice" in caught[0].message, caught[0].message


# Chat


@check
def chat_json():
    said = asks("talk json")
    heard = {"type": "input_audio", "input_audio": {"data": base64.b64encode(SOUND).decode(), "format": "wav"}}
    said["messages"][0]["content"] = [{"type": "text", "text": "talk json"}, heard]
    answer = client.chat.completions.create(**said)
    message = answer.choices[0].message
    equal((message.content, message.audio.transcript), (None, "Hi there"))
    equal(base64.b64decode(message.audio.data), SOUND)
    equal(answer.usage.completion_tokens_details.audio_tokens, 12)


class Talk:
    """Collects a chat's chunks. The provider sends the next only when the last one that counts has arrived."""

    def __init__(self):
        self.words, self.data, self.usage, self.finish = "", "", None, None

    def complete(self, chunk):
        """Takes a chunk. True: the provider waits to hear that it arrived."""
        if not chunk.choices:
            self.usage = chunk.usage
            return False
        self.finish = chunk.choices[0].finish_reason or self.finish
        audio = chunk.choices[0].delta.audio
        self.words += (audio and audio.transcript) or ""
        self.data += (audio and audio.data) or ""
        return bool(audio and audio.transcript)

    def check(self):
        equal((self.words, self.finish), ("Hi there", "stop"))
        equal(base64.b64decode(self.data), SOUND)
        equal(self.usage.total_tokens, 40)


def chat_streamed(with_client, text, tag):
    talk = Talk()
    for chunk in with_client.chat.completions.create(
        **asks(f"{text} {tag}", stream=True, stream_options={"include_usage": True})
    ):
        if talk.complete(chunk):
            go_on(tag)
    talk.check()


@check
def chat_stream():
    chat_streamed(client, "stream", "chat sync")


@check
def chat_stream_broken():
    got = 0
    with breaks() as caught:
        for _ in client.chat.completions.create(**asks("breakoff", stream=True)):
            got += 1
    equal(got, 1)
    return caught[0]


@check
def chat_stream_error():
    got = 0
    try:
        for _ in client.chat.completions.create(**asks("stumble", stream=True)):
            got += 1
    except openai.APIError as error:
        equal((got, error.message, error.code), (1, "Lost the thread.", "server_error"))
    else:
        raise AssertionError("no error")


# Models


@check
def models_list():
    equal([model.id for model in client.models.list()], ["house", "my-tts"])
    few = OpenAI(**options(key=LIMITED_KEY))
    equal([(model.id, model.owned_by, model.object) for model in few.models.list()], [("house", "openai", "model")])


@check
def models_retrieve():
    model = client.models.retrieve(MODEL)
    equal((model.id, model.object, model.owned_by), (MODEL, "model", "openai"))
    equal(client.models.retrieve("house").id, "house")


# Azure


@check
def azure_speech():
    with AzureOpenAI(**azure()) as other:
        equal(other.audio.speech.create(**says("plain azure", model="my-tts")).content, SOUND)
        equal(other.audio.speech.create(**says("plain azure", model=MODEL)).content, SOUND)
        with raises(openai.NotFoundError, code="model_not_found", param="model"):
            other.audio.speech.create(**says("never", model="nothing"))


@check
def azure_chat_stream():
    with AzureOpenAI(**azure()) as other:
        chat_streamed(other, "stream", "azure sync")


@check
def azure_wrong_key():
    with raises(openai.AuthenticationError, code="invalid_api_key"):
        AzureOpenAI(**{**azure(), "api_key": "wrong"}).audio.speech.create(**says("never", model="my-tts"))


# Errors


@check
def error_authentication():
    with raises(openai.AuthenticationError, code="invalid_api_key") as caught:
        OpenAI(**options(key="wrong", retries=2)).audio.speech.create(**says("never"))
    equal(caught[0].request_id, caught[0].response.headers["x-aulos-request-id"])
    equal(caught[0].response.headers["x-aulos-origin"], "aulos")
    assert caught[0].response.headers["www-authenticate"].startswith("Bearer")
    with raises(openai.AuthenticationError, code="invalid_api_key"):
        OpenAI(**options(key="wrong")).models.list()


@check
def error_permission():
    with raises(openai.PermissionDeniedError, code="model_access_denied", param="model"):
        OpenAI(**options(key=LIMITED_KEY, retries=2)).audio.speech.create(**says("never"))


@check
def error_not_found():
    with raises(openai.NotFoundError, code="model_not_found", param="model") as caught:
        client.audio.speech.create(**says("never", model="nothing"))
    assert "`nothing` does not exist" in caught[0].message
    with raises(openai.NotFoundError, code="model_not_found", param="model"):
        client.models.retrieve("nothing/at all")
    with raises(openai.NotFoundError, code="model_not_found", param="model"):
        OpenAI(**options(key=LIMITED_KEY)).models.retrieve(MODEL)


@check
def error_bad_request():
    with raises(openai.BadRequestError, code="missing_required_parameter", param="input"):
        client.audio.speech.create(**says(""))
    with raises(openai.BadRequestError, code="invalid_value", param="voice"):
        client.audio.speech.create(**{**says("never", model="house"), "voice": "nobody"})
    with raises(openai.BadRequestError, code="invalid_value", param="response_format"):
        client.audio.speech.create(**says("never", model="house", response_format="flac"))
    with raises(openai.BadRequestError, code="invalid_value", param="input"):
        client.audio.speech.create(**says("never" + "é" * 100, model="house"))
    with raises(openai.BadRequestError, code="model_conflict", param="model"):
        client.audio.speech.create(**says("never"), extra_query={"model": "house"})


@check
def error_too_large():
    with raises(openai.APIStatusError, code="request_too_large", status=413):
        OpenAI(**options(retries=2)).audio.speech.create(**says("never" * 400_000))


@check
def error_of_the_provider():
    with raises(openai.BadRequestError, code="unsupported_parameter", param="speed") as caught:
        OpenAI(**options(retries=2)).audio.speech.create(**says("refuse"))
    equal((caught[0].request_id, caught[0].type), ("req_vendor", "invalid_request_error"))
    equal(caught[0].response.headers["x-aulos-origin"], "provider")


@check
def error_rate_limit():
    with raises(openai.RateLimitError, code="rate_limit_exceeded") as caught:
        client.audio.speech.create(**says("limit"))
    equal((caught[0].response.headers["retry-after"], caught[0].request_id), ("7", "req_vendor"))


@check
def error_page():
    with raises(openai.InternalServerError, status=503) as caught:
        client.audio.speech.create(**says("page"))
    assert "<h1>" in str(caught[0].body)


@check
def error_unreachable():
    with raises(openai.InternalServerError, code="upstream_unavailable", status=502) as caught:
        client.audio.speech.create(**says("never", model="gone/tts-1"))
    equal(caught[0].response.headers["x-aulos-provider"], "gone")
    assert "x-should-retry" not in caught[0].response.headers


# Retries


@check
def retry_until_served():
    other = OpenAI(**options(retries=2))
    equal(other.audio.speech.create(**says("thrice sync")).content, SOUND)
    equal(base64.b64decode(other.chat.completions.create(**asks("thrice chat")).choices[0].message.audio.data), SOUND)


@check
def retry_gives_up():
    with raises(openai.InternalServerError, code="server_error", status=500):
        OpenAI(**options(retries=1)).audio.speech.create(**says("thrice once"))


@check
def retry_not_asked_for():
    with raises(openai.InternalServerError, code="provider_auth", status=502) as caught:
        OpenAI(**options(retries=2)).audio.speech.create(**says("credential"))
    equal(caught[0].response.headers["x-should-retry"], "false")
    assert "sk-" not in str(caught[0]), "the provider's words"


@check
def retry_overloaded():
    began = time.monotonic()
    answer = OpenAI(**options(gateway=BUSY_GATEWAY, retries=2)).audio.speech.create(**says("plain busy"))
    equal(answer.content, SOUND)
    # `Retry-After: 1` is obeyed; the SDK's own first pause is half a second at most.
    waited = time.monotonic() - began
    assert waited >= 0.95, waited
    return round(waited, 2)


# Async


@check
async def async_speech():
    async with AsyncOpenAI(**options()) as other:
        answers = await asyncio.gather(*(other.audio.speech.create(**says(f"plain async {i}")) for i in range(20)))
    assert all(answer.content == SOUND for answer in answers)


@check
async def async_piece_by_piece():
    pieces = Pieces()
    async with AsyncOpenAI(**options()) as other:
        async with other.audio.speech.with_streaming_response.create(**says("pieces async")) as answer:
            async for chunk in answer.iter_bytes():
                if pieces.complete(chunk):
                    await other.audio.speech.create(**says("next async"))
    pieces.check()


@check
async def async_chat_stream():
    talk = Talk()
    async with AsyncOpenAI(**options()) as other:
        events = {"stream": True, "stream_options": {"include_usage": True}}
        async for chunk in await other.chat.completions.create(**asks("stream chat async", **events)):
            if talk.complete(chunk):
                await other.audio.speech.create(**says("next chat async"))
    talk.check()


@check
async def async_models():
    async with AsyncOpenAI(**options()) as other:
        equal([model.id async for model in other.models.list()], ["house", "my-tts"])
        equal((await other.models.retrieve(MODEL)).id, MODEL)


@check
async def async_azure():
    async with AsyncAzureOpenAI(**azure()) as other:
        equal((await other.audio.speech.create(**says("plain azure async", model="my-tts"))).content, SOUND)


@check
async def async_errors():
    async with AsyncOpenAI(**options(retries=2)) as other:
        with raises(openai.BadRequestError, code="invalid_value", param="voice"):
            await other.audio.speech.create(**{**says("never", model="house"), "voice": "nobody"})
        with raises(openai.InternalServerError, code="provider_auth", status=502):
            await other.audio.speech.create(**says("credential async"))
        with breaks():
            async with other.audio.speech.with_streaming_response.create(**says("break async")) as answer:
                async for _ in answer.iter_bytes():
                    pass


@check
async def async_retry():
    async with AsyncOpenAI(**options(retries=2)) as other:
        equal((await other.audio.speech.create(**says("thrice async"))).content, SOUND)


@check
async def async_cancelled():
    """A task that is cancelled in mid-answer."""
    begun = asyncio.Event()

    async def listen():
        async with AsyncOpenAI(**options()) as other:
            async with other.audio.speech.with_streaming_response.create(**says("leave async")) as answer:
                async for _ in answer.iter_bytes():
                    begun.set()

    task = asyncio.create_task(listen())
    await begun.wait()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return
    raise AssertionError("it was not cancelled")


if __name__ == "__main__":
    sys.exit(main())
