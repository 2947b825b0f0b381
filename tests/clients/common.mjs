// What the scripts beside this one share: clients of the gateway, what they expect of it, and the account of it.

import assert from 'node:assert/strict';
import { AzureOpenAI } from 'openai';
import { VERSION } from 'openai/version';

export const { GATEWAY, API_KEY } = process.env;

const API_VERSION = '2025-04-01-preview';

export function options({ key = API_KEY, base = '/v1', gateway = GATEWAY, retries = 0, timeout = 15_000 } = {}) {
    return { apiKey: key, baseURL: gateway + base, maxRetries: retries, timeout };
}

export function azure(key = API_KEY) {
    return new AzureOpenAI({ apiKey: key, endpoint: GATEWAY, apiVersion: API_VERSION, maxRetries: 0, timeout: 15_000 });
}

/** The promise must fail with exactly this error, which is then looked at. A page that is no JSON has no `code`. */
export async function raises(kind, { status, code, param = code && null }, call) {
    try {
        await call();
    } catch (error) {
        assert.equal(error.constructor.name, kind.name, String(error));
        assert.deepEqual({ status: error.status, code: error.code, param: error.param }, { status, code, param });
        assert.ok(error.requestID, 'no request id');
        assert.ok(error.headers.get('x-aulos-request-id'));
        return error;
    }
    throw new assert.AssertionError({ message: `no ${kind.name}` });
}

/** The promise must fail, whatever the SDK calls it: a break that looks like an end would be a lie. */
export async function breaks(call) {
    try {
        await call();
    } catch (error) {
        if (error instanceof assert.AssertionError) throw error;
        return `${error.constructor.name}: ${error.message}`;
    }
    throw new assert.AssertionError({ message: 'it ended as if it were whole' });
}

/** Runs the checks. Prints the SDK's version, and one JSON line a check. */
export async function main(checks) {
    console.log(JSON.stringify({ sdk: 'openai-node', version: VERSION, runtime: process.version }));
    for (const [check, run] of Object.entries(checks)) {
        let line;
        try {
            line = { check, ok: true, detail: (await run()) ?? null };
        } catch (error) {
            line = { check, ok: false, detail: String(error?.stack ?? error).slice(0, 2000) };
        }
        console.log(JSON.stringify(line));
    }
}
