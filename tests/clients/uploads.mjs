// What people upload with openai-node, done to a gateway.
//
// `tests/stories/clients/uploads.rs` starts the gateway and plays the provider, which answers with the SHA-256 of the
// file it got: the first word of `prompt` tells it what to do, the rest makes the request one of its kind. `never`
// must not reach it, or not to its end.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { fileURLToPath } from 'node:url';
import OpenAI, { AzureOpenAI, toFile } from 'openai';
import { API_KEY, GATEWAY, azure, breaks, main, options, raises } from './common.mjs';

const { NARROW_GATEWAY } = process.env;
const MODEL = 'openai/whisper-1';
// A recording that is sent takes its time.
const PATIENT = { timeout: 60_000 };

/** No two places in it are alike. Beside the script, and its digest with it. */
function recording(name, size) {
    const bytes = Buffer.alloc(size);
    for (let at = 0; at < size; at += 4) bytes.writeUInt32LE(at / 4, at);
    const path = fileURLToPath(new URL(name, import.meta.url));
    fs.writeFileSync(path, bytes);
    return { bytes, path, name, heard: createHash('sha256').update(bytes).digest('hex') };
}

const SHORT = recording('speech.wav', 100_000);
const LONG = recording('long.mp3', 30_000_000);

const client = new OpenAI(options(PATIENT));

// The SDK keeps the order of these keys. The documented way has the file first; then nobody knows the model before
// all of it has passed.
const fileFirst = (prompt, file, more = {}) => ({ file, model: MODEL, prompt, ...more });
const modelFirst = (prompt, file, more = {}) => ({ model: MODEL, prompt, ...more, file });
const says = async (prompt, more) => fileFirst(prompt, await buffer(SHORT), more);

// The documented way: sent while it is read, in chunks, and never a second time.
const stream = ({ path }) => fs.createReadStream(path);
// Sent with its length.
const buffer = ({ bytes, name }) => toFile(bytes, name);

/** Every way to send a recording, in both orders. */
async function* ways(recording, prompt, more) {
    for (const [order, form] of [['file first', fileFirst], ['model first', modelFirst]]) {
        for (const [kind, file] of [['stream', stream], ['buffer', buffer]]) {
            yield form(`${prompt} ${kind}, ${order}`, await file(recording), more);
        }
    }
}

const transcribe = (asked, more, of = client) => of.audio.transcriptions.create(asked, more);

const files = {
    async upload_short() {
        for await (const asked of ways(SHORT, 'plain')) {
            const { text, usage } = await transcribe(asked);
            assert.deepEqual([text, usage], [SHORT.heard, { type: 'duration', seconds: 9 }], asked.prompt);
        }
    },

    async upload_named() {
        const file = await toFile(SHORT.bytes, 'Grüße "世界".wav', { type: 'audio/wave' });
        assert.equal((await transcribe(fileFirst('plain named', file))).text, SHORT.heard);
        const blob = new File([SHORT.bytes], 'blob.flac', { type: 'audio/flac' });
        assert.equal((await transcribe(fileFirst('plain blob', blob))).text, SHORT.heard);
    },

    async upload_long() {
        for await (const asked of ways(LONG, 'plain long')) {
            assert.equal((await transcribe(asked)).text, LONG.heard, asked.prompt);
        }
        // Named in the query, the model is known from the beginning, wherever it stands.
        const asked = fileFirst('plain long query', stream(LONG));
        assert.equal((await transcribe(asked, { query: { model: MODEL } })).text, LONG.heard);
    },

    async upload_many() {
        const calls = Array.from({ length: 20 }, (_, i) => transcribe(fileFirst(`plain many ${i}`, stream(SHORT))));
        for (const { text } of await Promise.all(calls)) assert.equal(text, SHORT.heard);
    },
};

const answers = {
    async format_text() {
        for (const [form, want] of [
            ['text', `${SHORT.heard}\n`],
            ['srt', `1\n00:00:00,000 --> 00:00:08,470\n${SHORT.heard}\n\n`],
            ['vtt', `WEBVTT\n\n00:00:00.000 --> 00:00:08.470\n${SHORT.heard}\n\n`],
        ]) {
            assert.equal(await transcribe(await says(`plain ${form}`, { response_format: form })), want);
        }
    },

    async format_verbose() {
        const more = { response_format: 'verbose_json', timestamp_granularities: ['word', 'segment'] };
        const { text, duration, words, segments } = await transcribe(await says('plain verbose', more));
        assert.deepEqual([text, duration], [SHORT.heard, 8.47]);
        assert.deepEqual([words.map(({ word }) => word), segments.map((part) => part.text)], [[text], [text]]);
    },

    async translation() {
        const asked = fileFirst('plain translation', stream(SHORT));
        assert.equal((await client.audio.translations.create(asked)).text, SHORT.heard);
        const verbose = await says('plain translation verbose', { response_format: 'verbose_json' });
        assert.equal((await client.audio.translations.create(verbose)).duration, 8.47);
    },

    async events() {
        for (const [tag, file] of [['stream', stream(SHORT)], ['buffer', await buffer(SHORT)]]) {
            const words = [];
            let done;
            for await (const event of await transcribe(fileFirst(`events ${tag}`, file, { stream: true }))) {
                if (event.type === 'transcript.text.done') done = event;
                else words.push(event.delta);
                // The provider sends the second only when the first has arrived.
                if (words.length === 1 && !done) await transcribe(await says(`next ${tag}`));
            }
            assert.deepEqual([words.length, words.join(''), done.text], [2, SHORT.heard, SHORT.heard]);
            assert.equal(done.usage.total_tokens, 59);
        }
    },

    async events_broken() {
        let got = 0;
        const asked = await says('breakoff events', { stream: true });
        const detail = await breaks(async () => {
            for await (const _ of await transcribe(asked)) got += 1;
        });
        assert.equal(got, 1);
        return detail;
    },

    async events_error() {
        let got = 0;
        try {
            for await (const _ of await transcribe(await says('stumble events', { stream: true }))) got += 1;
        } catch (error) {
            assert.ok(error instanceof OpenAI.APIError, String(error));
            assert.deepEqual([got, error.message, error.code], [1, 'Lost it.', 'server_error']);
            return;
        }
        throw new assert.AssertionError({ message: 'no error' });
    },

    async raw_response() {
        const asked = await says('plain raw', { model: 'my-stt' });
        const { data, response, request_id } = await transcribe(asked).withResponse();
        const own = Object.fromEntries([...response.headers].filter(([name]) => name.startsWith('x-aulos-')));
        assert.ok(own['x-aulos-request-id']);
        delete own['x-aulos-request-id'];
        const origin = { 'x-aulos-origin': 'provider', 'x-aulos-provider': 'openai' };
        assert.deepEqual(own, { ...origin, 'x-aulos-model': 'whisper-1', 'x-aulos-attempts': '1' });
        assert.deepEqual([request_id, data.text], ['req_vendor', SHORT.heard]);
    },

    async azure_uploads() {
        for (const [prompt, file, model] of [
            ['plain azure alias', stream(SHORT), 'my-stt'],
            ['plain azure', await buffer(SHORT), MODEL],
        ]) {
            const { text } = await transcribe(fileFirst(prompt, file, { model }), {}, azure());
            assert.equal(text, SHORT.heard, prompt);
        }
        const asked = fileFirst('plain azure translation', stream(SHORT), { model: 'my-stt' });
        assert.equal((await azure().audio.translations.create(asked)).text, SHORT.heard);
        await raises(OpenAI.NotFoundError, { code: 'model_not_found', param: 'model', status: 404 }, async () =>
            transcribe(await says('never', { model: 'nothing' }), {}, azure()),
        );
        // As one who has pasted the address of a deployment.
        const baseURL = `${GATEWAY}/openai/deployments/my-stt`;
        const pasted = new AzureOpenAI({ apiKey: API_KEY, baseURL, apiVersion: '2024-10-21', maxRetries: 0 });
        const { text } = await transcribe(await says('plain azure path', { model: 'whatever' }), {}, pasted);
        assert.equal(text, SHORT.heard);
    },

    async azure_v1() {
        const other = new OpenAI(options({ base: '/openai/v1' }));
        assert.equal((await transcribe(await says('plain azure v1'), {}, other)).text, SHORT.heard);
    },
};

// Nobody may have to guess from a connection that broke.
const errors = {
    async error_too_large() {
        const other = new OpenAI(options({ gateway: NARROW_GATEWAY, retries: 2, ...PATIENT }));
        for await (const asked of ways(LONG, 'never')) {
            const want = { code: 'request_too_large', status: 413 };
            const error = await raises(OpenAI.APIError, want, () => transcribe(asked, {}, other));
            assert.equal(error.headers.get('x-should-retry'), 'false', asked.prompt);
        }
    },

    async error_not_found() {
        const other = new OpenAI(options({ retries: 2, ...PATIENT }));
        const want = { code: 'model_not_found', param: 'model', status: 404 };
        for (const recording of [SHORT, LONG]) {
            for await (const asked of ways(recording, 'never', { model: 'nothing' })) {
                await raises(OpenAI.NotFoundError, want, () => transcribe(asked, {}, other));
            }
        }
    },

    async error_authentication() {
        const other = new OpenAI(options({ key: 'wrong', retries: 2, ...PATIENT }));
        for (const recording of [SHORT, LONG]) {
            for await (const asked of ways(recording, 'never')) {
                const want = { code: 'invalid_api_key', status: 401 };
                await raises(OpenAI.AuthenticationError, want, () => transcribe(asked, {}, other));
            }
        }
    },

    async error_bad_request() {
        for await (const asked of ways(LONG, 'never')) {
            const want = { code: 'model_conflict', param: 'model', status: 400 };
            const query = { model: 'my-stt' };
            await raises(OpenAI.BadRequestError, want, () => transcribe(asked, { query }));
        }
    },

    async error_of_the_provider() {
        const other = new OpenAI(options({ retries: 2 }));
        const want = { code: 'unsupported_value', param: 'file', status: 400 };
        const asked = fileFirst('refuse sync', stream(SHORT));
        const error = await raises(OpenAI.BadRequestError, want, () => transcribe(asked, {}, other));
        assert.deepEqual([error.requestID, error.headers.get('x-aulos-origin')], ['req_vendor', 'provider']);
    },

    async error_early() {
        for (const how of ['drains', 'lingers', 'closes']) {
            for await (const asked of ways(LONG, `early ${how}`)) {
                const more = { headers: { 'x-early': how }, query: { model: MODEL } };
                const want = { code: 'rate_limit_exceeded', status: 429 };
                const error = await raises(OpenAI.RateLimitError, want, () => transcribe(asked, more));
                const got = [error.headers.get('retry-after'), error.requestID];
                assert.deepEqual(got, ['7', 'req_vendor'], asked.prompt);
            }
        }
    },
};

const retries = {
    async retry_until_served() {
        const other = new OpenAI(options({ retries: 2 }));
        assert.equal((await transcribe(await says('thrice buffer'), {}, other)).text, SHORT.heard);
    },

    async retry_not_possible() {
        const other = new OpenAI(options({ retries: 2 }));
        const want = { code: 'server_error', status: 500 };
        const asked = fileFirst('thrice stream', stream(SHORT));
        await raises(OpenAI.InternalServerError, want, () => transcribe(asked, {}, other));
    },
};

await main({ ...files, ...answers, ...errors, ...retries });
