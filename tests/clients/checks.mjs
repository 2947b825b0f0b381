// What people do with openai-node, done to a gateway: speech, chats, models.
//
// `tests/stories/clients/speech.rs` starts the gateway and plays the provider: the first word of `input`, or of a
// chat's first message, tells it what to do, the rest makes the request one of its kind. `never` must not reach it.

import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { azure, breaks, main, options, raises } from './common.mjs';

const { BUSY_GATEWAY, LIMITED_KEY } = process.env;

// The provider's sound, and the sizes of the pieces in which it streams it.
const SOUND = Buffer.from(Array.from({ length: 40_000 }, (_, i) => (i * 7 + Math.floor(i / 256)) % 256));
const PIECES = [16, 5_000, 34_984];
const MODEL = 'openai/tts-1';
const CHAT = { model: 'openai/gpt-audio', modalities: ['text', 'audio'], audio: { voice: 'alloy', format: 'pcm16' } };

const client = new OpenAI(options());

const says = (input, more = {}) => ({ model: MODEL, input, voice: 'alloy', ...more });
const asks = (content, more = {}) => ({ ...CHAT, messages: [{ role: 'user', content }], ...more });
const goOn = (tag) => client.audio.speech.create(says(`next ${tag}`));
const bytes = async (answer) => Buffer.from(await answer.arrayBuffer());
// Not `deepEqual`, whose account of a difference would be 40 000 lines long.
const sound = (got, want = SOUND) => assert.ok(want.equals(got), `${got.length} bytes that are not the provider's`);

/** Collects a chat's chunks. The provider sends the next only when the last one that counts has arrived. */
async function chatStreamed(withClient, text, tag) {
    let [words, data, usage, finish] = ['', '', null, null];
    const asked = asks(`${text} ${tag}`, { stream: true, stream_options: { include_usage: true } });
    for await (const chunk of await withClient.chat.completions.create(asked)) {
        usage = chunk.usage ?? usage;
        const [choice] = chunk.choices;
        finish = choice?.finish_reason ?? finish;
        words += choice?.delta.audio?.transcript ?? '';
        data += choice?.delta.audio?.data ?? '';
        if (choice?.delta.audio?.transcript) await goOn(tag);
    }
    assert.deepEqual([words, finish, usage?.total_tokens], ['Hi there', 'stop', 40]);
    sound(Buffer.from(data, 'base64'));
}

const speech = {
    async speech_create() {
        const more = { instructions: 'calm', response_format: 'opus', speed: 1.25 };
        const answer = await client.audio.speech.create(says('plain Grüße, 世界 🌍', more));
        assert.equal(answer.headers.get('content-type'), 'audio/mpeg');
        sound(await bytes(answer));
    },

    async speech_many() {
        const calls = Array.from({ length: 20 }, (_, i) => client.audio.speech.create(says(`plain many ${i}`)));
        for (const answer of await Promise.all(calls)) sound(await bytes(answer));
    },

    async speech_piece_by_piece() {
        const answer = await client.audio.speech.create(says('pieces sync'));
        let [got, asked, due] = [Buffer.alloc(0), 0, PIECES[0]];
        for await (const chunk of answer.body) {
            got = Buffer.concat([got, chunk]);
            // The provider sends no further piece before the last one is here in full.
            if (got.length === due && asked + 1 < PIECES.length) {
                asked += 1;
                due += PIECES[asked];
                await goOn('sync');
            }
        }
        sound(got);
        assert.equal(asked, PIECES.length - 1, 'pieces that arrived by themselves');
    },

    async speech_events() {
        const answer = await client.audio.speech.create(says('events sync', { stream_format: 'sse' }));
        assert.match(answer.headers.get('content-type'), /^text\/event-stream/);
        const events = [];
        let text = '';
        for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
            text += chunk;
            for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
                events.push(JSON.parse(text.slice('data: '.length, end)));
                text = text.slice(end + 2);
                if (events.length === 1) await goOn('sync');
            }
        }
        const types = ['speech.audio.delta', 'speech.audio.delta', 'speech.audio.done'];
        assert.deepEqual(events.map((event) => event.type), types);
        sound(Buffer.concat(events.slice(0, 2).map((event) => Buffer.from(event.audio, 'base64'))));
        assert.equal(events[2].usage.total_tokens, 115);
    },

    async speech_left_early() {
        const reader = (await client.audio.speech.create(says('leave cancelled'))).body.getReader();
        assert.equal((await reader.read()).value.length, PIECES[0]);
        await reader.cancel();
        const leaving = new AbortController();
        const answer = await client.audio.speech.create(says('leave aborted'), { signal: leaving.signal });
        const reading = breaks(async () => {
            for await (const _ of answer.body) leaving.abort();
        });
        assert.match(await reading, /abort/i);
    },

    async speech_broken() {
        const details = [];
        for (const text of ['break whole', 'short whole']) {
            details.push(await breaks(async () => bytes(await client.audio.speech.create(says(text)))));
        }
        return details;
    },

    async speech_broken_stream() {
        const details = [];
        for (const text of ['break streamed', 'short streamed']) {
            let got = Buffer.alloc(0);
            const answer = await client.audio.speech.create(says(text));
            details.push(
                await breaks(async () => {
                    for await (const chunk of answer.body) got = Buffer.concat([got, chunk]);
                }),
            );
            assert.ok(got.length > 0 && got.length < SOUND.length, String(got.length));
            sound(got, SOUND.subarray(0, got.length));
        }
        return details;
    },

    async raw_response() {
        const asked = client.audio.speech.create(says('plain raw', { model: 'my-tts' }));
        const { data, response, request_id } = await asked.withResponse();
        const own = Object.fromEntries([...response.headers].filter(([name]) => name.startsWith('x-aulos-')));
        assert.ok(own['x-aulos-request-id']);
        delete own['x-aulos-request-id'];
        const origin = { 'x-aulos-origin': 'provider', 'x-aulos-provider': 'openai' };
        assert.deepEqual(own, { ...origin, 'x-aulos-model': 'tts-1', 'x-aulos-attempts': '1' });
        assert.equal(request_id, 'req_vendor');
        assert.equal(response.headers.get('set-cookie'), null);
        sound(await bytes(data));
    },

    async base_urls() {
        for (const base of ['/v1', '/v1/', '/api/v1', '/openai/v1']) {
            const other = new OpenAI(options({ base }));
            sound(await bytes(await other.audio.speech.create(says(`plain ${base}`))));
            assert.ok((await other.models.list()).data.length, base);
        }
    },

    async base_url_wrong() {
        for (const [base, words] of [['/', /Set the base URL to `…\/v1`/], ['/v1/v1', /twice/]]) {
            const lost = () => new OpenAI(options({ base })).audio.speech.create(says('never'));
            const error = await raises(OpenAI.NotFoundError, { code: 'unknown_url', status: 404 }, lost);
            assert.match(error.message, words);
        }
    },
};

const others = {
    async chat_json() {
        const heard = { type: 'input_audio', input_audio: { data: SOUND.toString('base64'), format: 'wav' } };
        const answer = await client.chat.completions.create(asks([{ type: 'text', text: 'talk json' }, heard]));
        const { message } = answer.choices[0];
        assert.deepEqual([message.content, message.audio.transcript], [null, 'Hi there']);
        sound(Buffer.from(message.audio.data, 'base64'));
        assert.equal(answer.usage.completion_tokens_details.audio_tokens, 12);
        assert.equal(answer._request_id, 'req_vendor');
    },

    async chat_stream() {
        await chatStreamed(client, 'stream', 'chat sync');
    },

    async chat_stream_broken() {
        let got = 0;
        const detail = await breaks(async () => {
            for await (const _ of await client.chat.completions.create(asks('breakoff', { stream: true }))) got += 1;
        });
        assert.equal(got, 1);
        return detail;
    },

    async chat_stream_error() {
        let got = 0;
        try {
            for await (const _ of await client.chat.completions.create(asks('stumble', { stream: true }))) got += 1;
        } catch (error) {
            assert.ok(error instanceof OpenAI.APIError, String(error));
            assert.deepEqual([got, error.message, error.code], [1, 'Lost the thread.', 'server_error']);
            return;
        }
        throw new assert.AssertionError({ message: 'no error' });
    },

    async models_list() {
        const ids = async (of) => {
            const found = [];
            for await (const model of of.models.list()) found.push(model.id);
            return found;
        };
        assert.deepEqual(await ids(client), ['house', 'my-tts']);
        assert.deepEqual(await ids(new OpenAI(options({ key: LIMITED_KEY }))), ['house']);
    },

    async models_retrieve() {
        const { id, object, owned_by } = await client.models.retrieve(MODEL);
        assert.deepEqual([id, object, owned_by], [MODEL, 'model', 'openai']);
        assert.equal((await client.models.retrieve('house')).id, 'house');
    },

    async azure_speech() {
        sound(await bytes(await azure().audio.speech.create(says('plain azure', { model: 'my-tts' }))));
        sound(await bytes(await azure().audio.speech.create(says('plain azure'))));
        await raises(OpenAI.NotFoundError, { code: 'model_not_found', param: 'model', status: 404 }, () =>
            azure().audio.speech.create(says('never', { model: 'nothing' })),
        );
    },

    async azure_chat_stream() {
        await chatStreamed(azure(), 'stream', 'azure sync');
    },

    async azure_wrong_key() {
        await raises(OpenAI.AuthenticationError, { code: 'invalid_api_key', status: 401 }, () =>
            azure('wrong').audio.speech.create(says('never', { model: 'my-tts' })),
        );
    },
};

const errors = {
    async error_authentication() {
        const wrong = new OpenAI(options({ key: 'wrong', retries: 2 }));
        const want = { code: 'invalid_api_key', status: 401 };
        const error = await raises(OpenAI.AuthenticationError, want, () => wrong.audio.speech.create(says('never')));
        assert.equal(error.requestID, error.headers.get('x-aulos-request-id'));
        assert.equal(error.headers.get('x-aulos-origin'), 'aulos');
        assert.match(error.headers.get('www-authenticate'), /^Bearer/);
        await raises(OpenAI.AuthenticationError, want, () => wrong.models.list());
    },

    async error_permission() {
        const few = new OpenAI(options({ key: LIMITED_KEY, retries: 2 }));
        const want = { code: 'model_access_denied', param: 'model', status: 403 };
        await raises(OpenAI.PermissionDeniedError, want, () => few.audio.speech.create(says('never')));
    },

    async error_not_found() {
        const want = { code: 'model_not_found', param: 'model', status: 404 };
        const asked = says('never', { model: 'nothing' });
        const error = await raises(OpenAI.NotFoundError, want, () => client.audio.speech.create(asked));
        assert.match(error.message, /`nothing` does not exist/);
        await raises(OpenAI.NotFoundError, want, () => client.models.retrieve('nothing/at all'));
        const few = new OpenAI(options({ key: LIMITED_KEY }));
        await raises(OpenAI.NotFoundError, want, () => few.models.retrieve(MODEL));
    },

    async error_bad_request() {
        for (const [asked, code, param] of [
            [says(''), 'missing_required_parameter', 'input'],
            [{ ...says('never', { model: 'house' }), voice: 'nobody' }, 'invalid_value', 'voice'],
            [says('never', { model: 'house', response_format: 'flac' }), 'invalid_value', 'response_format'],
            [says(`never${'é'.repeat(100)}`, { model: 'house' }), 'invalid_value', 'input'],
        ]) {
            const call = () => client.audio.speech.create(asked);
            await raises(OpenAI.BadRequestError, { code, param, status: 400 }, call);
        }
        await raises(OpenAI.BadRequestError, { code: 'model_conflict', param: 'model', status: 400 }, () =>
            client.audio.speech.create(says('never'), { query: { model: 'house' } }),
        );
    },

    async error_too_large() {
        const other = new OpenAI(options({ retries: 2 }));
        await raises(OpenAI.APIError, { code: 'request_too_large', status: 413 }, () =>
            other.audio.speech.create(says('never'.repeat(400_000))),
        );
    },

    async error_of_the_provider() {
        const other = new OpenAI(options({ retries: 2 }));
        const want = { code: 'unsupported_parameter', param: 'speed', status: 400 };
        const error = await raises(OpenAI.BadRequestError, want, () => other.audio.speech.create(says('refuse')));
        assert.deepEqual([error.requestID, error.type], ['req_vendor', 'invalid_request_error']);
        assert.equal(error.headers.get('x-aulos-origin'), 'provider');
    },

    async error_rate_limit() {
        const want = { code: 'rate_limit_exceeded', status: 429 };
        const error = await raises(OpenAI.RateLimitError, want, () => client.audio.speech.create(says('limit')));
        assert.deepEqual([error.headers.get('retry-after'), error.requestID], ['7', 'req_vendor']);
    },

    async error_page() {
        const call = () => client.audio.speech.create(says('page'));
        const error = await raises(OpenAI.InternalServerError, { status: 503 }, call);
        assert.match(error.message, /<h1>/);
    },

    async error_unreachable() {
        const want = { code: 'upstream_unavailable', status: 502 };
        const asked = says('never', { model: 'gone/tts-1' });
        const error = await raises(OpenAI.InternalServerError, want, () => client.audio.speech.create(asked));
        assert.equal(error.headers.get('x-aulos-provider'), 'gone');
        assert.equal(error.headers.get('x-should-retry'), null);
    },
};

const retries = {
    async retry_until_served() {
        const other = new OpenAI(options({ retries: 2 }));
        sound(await bytes(await other.audio.speech.create(says('thrice sync'))));
        const answer = await other.chat.completions.create(asks('thrice chat'));
        sound(Buffer.from(answer.choices[0].message.audio.data, 'base64'));
    },

    async retry_gives_up() {
        const other = new OpenAI(options({ retries: 1 }));
        const want = { code: 'server_error', status: 500 };
        await raises(OpenAI.InternalServerError, want, () => other.audio.speech.create(says('thrice once')));
    },

    async retry_not_asked_for() {
        const other = new OpenAI(options({ retries: 2 }));
        const want = { code: 'provider_auth', status: 502 };
        const call = () => other.audio.speech.create(says('credential'));
        const error = await raises(OpenAI.InternalServerError, want, call);
        assert.equal(error.headers.get('x-should-retry'), 'false');
        assert.ok(!error.message.includes('sk-'), "the provider's words");
    },

    async retry_overloaded() {
        const began = performance.now();
        const other = new OpenAI(options({ gateway: BUSY_GATEWAY, retries: 2 }));
        sound(await bytes(await other.audio.speech.create(says('plain busy'))));
        // `Retry-After: 1` is obeyed; the SDK's own first pause is half a second at most.
        const waited = performance.now() - began;
        assert.ok(waited >= 950, String(waited));
        return Math.round(waited);
    },
};

await main({ ...speech, ...others, ...errors, ...retries });
