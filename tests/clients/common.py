"""What the scripts beside this one share: clients of the gateway, what they expect of it, and the account of it."""

import asyncio
import json
import os
import platform
import traceback
from contextlib import contextmanager
from importlib.metadata import version

import openai

GATEWAY = os.environ["GATEWAY"]
KEY = os.environ["API_KEY"]
API_VERSION = "2025-04-01-preview"

# The sound of every provider here, and the sizes of the pieces in which one streams it.
SOUND = bytes((i * 7 + i // 256) % 256 for i in range(40_000))
PIECES = (16, 5_000, 34_984)

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def options(key=KEY, base="/v1", gateway=GATEWAY, retries=0, timeout=15):
    return {"api_key": key, "base_url": gateway + base, "max_retries": retries, "timeout": timeout}


def azure(timeout=15):
    return {
        "api_key": KEY, "azure_endpoint": GATEWAY, "api_version": API_VERSION, "max_retries": 0, "timeout": timeout,
    }


def equal(got, want, what=""):
    assert got == want, f"{what} {got!r:.300} is not {want!r:.300}"


@contextmanager
def raises(kind, code=None, param=None, status=None):
    """The body must raise exactly this error, which is then looked at."""
    caught = []
    try:
        yield caught
    except openai.APIStatusError as error:
        caught.append(error)
        equal(type(error), kind)
        equal((error.code, error.param), (code, param))
        assert error.request_id, "no request id"
        assert error.response.headers["x-aulos-request-id"]
        if status is not None:
            equal(error.status_code, status)
    else:
        raise AssertionError(f"no {kind.__name__}")


@contextmanager
def breaks():
    """The body must raise, whatever the SDK calls it: a break that looks like an end would be a lie."""
    caught = []
    try:
        yield caught
    except AssertionError:
        raise
    except Exception as error:
        caught.append(f"{type(error).__module__}.{type(error).__name__}")
    else:
        raise AssertionError("it ended as if it were whole")


class Pieces:
    """Collects what arrives. The provider sends no further piece before the last one is here in full."""

    def __init__(self, sizes=PIECES):
        self.sizes, self.got, self.asked = sizes, b"", 0

    def complete(self, chunk):
        """Takes what arrived. True: a piece is whole, and another is to come."""
        self.got += chunk
        if self.asked + 1 < len(self.sizes) and len(self.got) == sum(self.sizes[: self.asked + 1]):
            self.asked += 1
            return True
        return False

    def check(self):
        equal(self.got, SOUND)
        equal(self.asked, len(self.sizes) - 1, "pieces that arrived by themselves")


def run(function):
    try:
        result = function()
        if asyncio.iscoroutine(result):
            result = asyncio.run(asyncio.wait_for(result, 60))
        return True, result
    except Exception as error:
        return False, f"{error!r} {traceback.format_exc(limit=-3)}"


def main(sdk="openai"):
    """Runs the checks. Prints the SDK's version, and one JSON line a check."""
    print(json.dumps({"sdk": sdk, "version": version(sdk), "runtime": f"python {platform.python_version()}"}))
    for function in CHECKS:
        ok, detail = run(function)
        print(json.dumps({"check": function.__name__, "ok": ok, "detail": detail}), flush=True)
