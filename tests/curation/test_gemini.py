"""The real google-genai client against a local server that speaks Gemini's REST protocol."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import sqlite3
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from gemini_server import Act, Body, GeminiServer, failure, generated, prompt_of, scripted
from pydantic import ValidationError

from mvspec.curation import (
    CurationStopped,
    CurationStore,
    ModelAnswer,
    ModelClient,
    ModelProvider,
    ModelRequest,
    RateLimit,
    RequestRefused,
    RequestUnanswered,
    SpendingLimit,
    TokenPrice,
    TokenUsage,
)
from mvspec.curation.answers import StepsReply, schema_text
from mvspec.curation.client import RankedSemaphore
from mvspec.curation.gemini import GeminiProvider
from mvspec.curation.questions import read_reply
from mvspec.curation.structure import UnusableAnswer
from mvspec.data.records import InputError

KEY = "test-key-that-nobody-may-see-4711"
ASK = ModelRequest(
    "parse", "gemini-x", "Say it.", "[1] One.", schema_text(StepsReply), max_tokens=64
)


@asynccontextmanager
async def gemini(server: GeminiServer, timeout: float = 5.0) -> AsyncIterator[GeminiProvider]:
    made = GeminiProvider(base_url=server.url, key=KEY, timeout=timeout)
    try:
        yield made
    finally:
        await made.aclose()


def asked(script: Callable[[Body, int], Act], timeout: float = 5.0) -> ModelAnswer:
    async def ask() -> ModelAnswer:
        async with gemini(server, timeout) as provider:
            return await provider.ask(ASK)

    with GeminiServer(script) as server:
        return asyncio.run(ask())


def test_a_request_carries_everything_and_an_answer_comes_back() -> None:
    async def ask() -> ModelAnswer:
        async with gemini(server) as provider:
            request = ModelRequest(
                "parse", "gemini-x", "Say it.", "[1] One.", schema_text(StepsReply),
                max_tokens=64, temperature=0.5, thinking=128, attempt=3,
            )  # fmt: skip
            return await provider.ask(request)

    with GeminiServer() as server:
        answer = asyncio.run(ask())
    assert json.loads(answer.text)["steps"][0]["last"] == 1
    assert answer.finish == "stop"
    assert answer.version == "scripted-1"
    assert answer.usage.prompt > 0
    (body,) = server.bodies
    assert prompt_of(body) == "[1] One."
    assert body["systemInstruction"]["parts"] == [{"text": "Say it."}]
    config = body["generationConfig"]
    assert config["responseMimeType"] == "application/json"
    assert config["responseJsonSchema"]["title"] == "Steps"
    assert config["maxOutputTokens"] == 64
    assert config["temperature"] == 0.5
    assert config["seed"] == 3
    assert config["thinkingConfig"] == {"thinking_budget": 128} or config["thinkingConfig"] == {
        "thinkingBudget": 128
    }
    assert server.keys == {KEY}


@pytest.mark.parametrize(
    ("body", "finish", "reason"),
    [
        (generated('{"steps": [', "MAX_TOKENS"), "length", "MAX_TOKENS"),
        (generated("", "SAFETY"), "blocked", "SAFETY"),
        (generated("", "RECITATION"), "blocked", "RECITATION"),
        (generated("x", "SOME_REASON_OF_TOMORROW"), "blocked", "SOME_REASON_OF_TOMORROW"),
        (generated(""), "empty", "STOP"),
        ({"promptFeedback": {"blockReason": "OTHER"}}, "blocked", "OTHER"),
        ({"usageMetadata": {"promptTokenCount": 9}}, "empty", ""),
        ({"candidates": [{"content": {"parts": [{"text": "x"}]}}]}, "length", ""),
        (generated("half", "CONTINUATION"), "length", "CONTINUATION"),
    ],
)  # fmt: skip
def test_answers_that_are_none_are_told_apart(body: Body, finish: str, reason: str) -> None:
    answer = asked(lambda _, times: Act(body=body))
    assert (answer.finish, answer.reason) == (finish, reason)


def test_compressed_answers() -> None:
    body = gzip.compress(json.dumps(generated("yes")).encode())
    act = Act(body=body, headers={"Content-Encoding": "gzip"})
    assert asked(lambda _, times: act).text == "yes"


def test_thoughts_are_counted_and_not_part_of_the_text() -> None:
    body = generated("yes", read=7, written=1, thoughts=30)
    body["candidates"][0]["content"]["parts"].insert(0, {"text": "hm", "thought": True})
    answer = asked(lambda _, times: Act(body=body))
    assert answer.text == "yes"
    assert answer.usage == TokenUsage(prompt=7, output=1, thoughts=30)


LATIN = json.dumps(generated("caf\xe9"), ensure_ascii=False).encode("latin-1")
RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.3s"}


@pytest.mark.parametrize(
    ("act", "after", "paid", "crowded"),
    [
        (Act(429, failure(429, "RESOURCE_EXHAUSTED", "slow", RETRY_INFO)), 0.3, False, True),
        (Act(429, failure(429, "X"), headers={"Retry-After": "7"}), 7.0, False, True),
        (Act(429, failure(429, "X"), headers={"Retry-After": "Thu, 1 Jan"}), None, False, True),
        (Act(503, failure(503, "UNAVAILABLE", "overloaded")), None, False, True),
        (Act(500, failure(500, "INTERNAL")), None, True, False),
        (Act(502, b"<html>bad gateway</html>"), None, True, False),
        (Act(504, failure(504, "DEADLINE_EXCEEDED")), None, True, False),
        (Act(drop="before"), None, True, False),
        (Act(body=generated("x" * 5000), drop="half"), None, True, False),
        (Act(body=b'{"candidates": ['), None, True, False),
        (Act(body=b"\xff\xfe"), None, True, False),
        (
            Act(body=json.dumps(generated("caf\xe9"), ensure_ascii=False).encode("latin-1")),
            None,
            True,
            False,
        ),
        (Act(body=json.dumps(generated("x")).encode("utf-16")), None, True, False),
        (Act(body=generated("half a pair: \ud800")), None, True, False),
        (Act(body=b"not gzip", headers={"Content-Encoding": "gzip"}), None, True, False),
        (Act(body=b"[" * 100_000), None, True, False),
        (Act(body=b""), None, True, False),
        (Act(body=b"null"), None, True, False),
        (Act(429, failure(429, "X"), headers={"Retry-After": "inf"}), 3600.0, False, True),
        (Act(503, bytes(range(256))), None, False, True),
        (Act(body=b'{"candidates": 5}'), None, True, False),
        (Act(seconds=3.0, body=generated("late")), None, True, False),
    ],
)
def test_what_may_help_to_ask_again(
    act: Act, after: float | None, paid: bool, crowded: bool
) -> None:
    with pytest.raises(RequestUnanswered) as caught:
        asked(lambda _, times: act, timeout=1.0)
    error = caught.value
    assert (error.after, error.paid, error.crowded) == (after, paid, crowded)


def test_nothing_listens() -> None:
    async def ask() -> ModelAnswer:
        provider = GeminiProvider(base_url="http://127.0.0.1:9", key=KEY, timeout=5)
        return await provider.ask(ASK)

    with pytest.raises(RequestUnanswered, match="no connection") as caught:
        asyncio.run(ask())
    assert not caught.value.paid


DAY = {
    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
    "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
}


@pytest.mark.parametrize(
    ("act", "everyone"),
    [
        (Act(400, failure(400, "INVALID_ARGUMENT", "too many tokens")), False),
        (Act(400, failure(400, "X", f"bad key {KEY}", {"reason": "API_KEY_INVALID"})), True),
        (Act(401, failure(401, "UNAUTHENTICATED")), True),
        (Act(403, failure(403, "PERMISSION_DENIED")), True),
        (Act(404, failure(404, "NOT_FOUND", "no such model")), True),
        (Act(403, b"not \xfc allowed"), True),
        (Act(403, '{"error": {"code": 403, "message": "caf\xe9"}}'.encode("latin-1")), True),
        (Act(400, json.dumps([failure(400, "X", "API key not valid")]).encode()), True),
        (Act(400, b""), False),
        (Act(429, failure(429, "RESOURCE_EXHAUSTED", "", DAY)), True),
    ],
)
def test_what_does_not_help_to_ask_again(act: Act, everyone: bool) -> None:
    with pytest.raises(RequestRefused) as caught:
        asked(lambda _, times: act)
    assert caught.value.all is everyone
    assert KEY not in str(caught.value)


def test_the_client_never_asks_again_by_itself() -> None:
    for act in (Act(500, failure(500, "INTERNAL")), Act(drop="before")):
        with GeminiServer(lambda _, times, act=act: act) as server:  # type: ignore[misc]

            async def ask() -> None:
                async with gemini(server) as provider:
                    with pytest.raises(RequestUnanswered):
                        await provider.ask(ASK)

            asyncio.run(ask())
            assert server.seen.total() == 1


def test_no_key_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="set GEMINI_API_KEY"):
        GeminiProvider()


def test_the_key_is_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not in errors with all that they hold, not in any logger at any level, not in the store."""
    caplog.set_level(logging.DEBUG)
    echo = failure(500, "INTERNAL", f"header was {KEY}")

    def script(body: Body, times: int) -> Act:
        return Act(500, echo) if times == 0 else Act(body=generated(f"your key is {KEY[:-4]}"))

    async def ask(caller: ModelClient) -> None:
        await caller.ask(ASK)

    with GeminiServer(script) as server:
        run(server, tmp_path, ask)
        with pytest.raises(RequestUnanswered) as caught:
            asked(lambda _, times: Act(500, echo))
        assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in caplog.text
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()


# Asking through the store, the budget and the pace


def run(
    server: GeminiServer,
    folder: Path,
    work: Callable[[ModelClient], Any],
    *,
    limit: float | None = None,
    price: TokenPrice = TokenPrice(),  # noqa: B008
    timeout: float = 5.0,
    provider: ModelProvider | None = None,
    **options: Any,
) -> ModelClient:
    async def all() -> ModelClient:
        store = CurationStore(folder / "answers.sqlite")
        async with gemini(server, timeout) as made:
            caller = ModelClient(
                provider or made, store, budget=SpendingLimit(limit, *store.spent()), price=price,
                first_wait=0.01, longest_wait=0.05, **options,
            )  # fmt: skip
            await work(caller)
            await caller.landed()
        store.close()
        return caller

    return asyncio.run(all())


def numbered(count: int) -> list[ModelRequest]:
    return [ModelRequest("p", "m", "s", f"[1] Number {n}.", max_tokens=100) for n in range(count)]


def test_troubles_pass_and_are_counted(tmp_path: Path) -> None:
    troubles = [
        Act(429, failure(429, "X", "", RETRY_INFO)),
        Act(500, failure(500, "X")),
        Act(503, failure(503, "X")),
        Act(drop="before"),
        Act(body=generated("yes" * 1000), drop="half"),
        Act(body=b"{"),
        Act(body=generated("late"), seconds=2.0),
    ]

    def script(body: Body, times: int) -> Act:
        return troubles[times] if times < len(troubles) else Act(body=generated("yes"))

    async def ask(caller: ModelClient) -> None:
        assert (await caller.ask(ASK)).text == "yes"

    with GeminiServer(script) as server:
        start = time.monotonic()
        caller = run(server, tmp_path, ask, timeout=0.5, retries=8)
        assert time.monotonic() - start > 0.3  # RetryInfo was heeded
        assert server.seen.total() == len(troubles) + 1
    assert caller.traffic.calls == len(troubles) + 1
    assert caller.traffic.failures.total() == len(troubles)
    assert caller.traffic.answered == 1


def test_one_answer_is_paid_once(tmp_path: Path) -> None:
    async def ask(caller: ModelClient) -> None:
        await asyncio.gather(*(caller.ask(ASK) for _ in range(20)))

    with GeminiServer() as server:
        run(server, tmp_path, ask)
        caller = run(server, tmp_path, ask)
        assert server.seen.total() == 1
    assert caller.traffic.calls == 0
    assert caller.traffic.stored == 20


def test_a_store_of_another_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "answers.sqlite")) as file:
        file.execute("PRAGMA user_version = 9")
    with pytest.raises(InputError, match="format 9, and this mvspec reads 1: use another folder"):
        CurationStore(tmp_path / "answers.sqlite")


def test_retries_are_bounded(tmp_path: Path) -> None:
    async def ask(caller: ModelClient) -> None:
        with pytest.raises(RequestUnanswered, match="HTTP 503"):
            await caller.ask(ASK)

    with GeminiServer(lambda _, times: Act(503, failure(503, "X"))) as server:
        run(server, tmp_path, ask, retries=3)
        assert server.seen.total() == 4


def test_a_wrong_key_stops_everything_at_once(tmp_path: Path) -> None:
    async def ask(caller: ModelClient) -> None:
        results = await asyncio.gather(*map(caller.ask, numbered(50)), return_exceptions=True)
        assert all(isinstance(each, RequestRefused | CurationStopped) for each in results)

    with GeminiServer(lambda _, times: Act(403, failure(403, "X", "no"))) as server:
        caller = run(server, tmp_path, ask, concurrency=4)
        assert server.seen.total() <= 4
    assert caller.stopped


def test_requests_that_are_all_refused_stop_the_run(tmp_path: Path) -> None:
    async def ask(caller: ModelClient) -> None:
        await asyncio.gather(*map(caller.ask, numbered(50)), return_exceptions=True)

    with GeminiServer(lambda _, times: Act(400, failure(400, "X", "schema?"))) as server:
        caller = run(server, tmp_path, ask, concurrency=1)
        assert server.seen.total() == 3
    assert "schema?" in str(caller.stopped)
    long = Act(
        400, failure(400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum")
    )
    with GeminiServer(lambda _, times: long) as server:
        caller = run(server, tmp_path, ask, concurrency=1)
        assert server.seen.total() == 10  # its own fault, were others answered


@pytest.mark.parametrize(
    ("status", "message", "reason", "advice", "most"),
    [
        (400, "User location is not supported", "FAILED_PRECONDITION", "--base-url", 1),
        (400, "API key expired. Please renew.", "INVALID_ARGUMENT", "GEMINI_API_KEY", 1),
        (400, "Please enable billing on project 42.", "FAILED_PRECONDITION", "billing", 1),
        (400, "Thinking budget 9 is invalid; it exceeds 8.", "INVALID_ARGUMENT", "--thinking", 3),
        (400, "JSON mode is not enabled for this model", "INVALID_ARGUMENT", "--model", 3),
        (403, "Your API has not been used in project 1", "PERMISSION_DENIED", "rights", 1),
        (404, "models/x is not found for API version v1beta", "NOT_FOUND", "--model", 1),
        (401, "", "UNAUTHENTICATED", "GEMINI_API_KEY", 1),
    ],
)  # fmt: skip
def test_what_concerns_every_record_stops_the_run_and_says_what_to_do(
    tmp_path: Path, status: int, message: str, reason: str, advice: str, most: int
) -> None:
    """Also in the middle of a run, and where one of its numbers differs from time to time."""

    def script(body: Body, times: int) -> Act:
        number = server.seen.total()
        said = message.replace("42", str(number))
        return (
            Act(body=generated("yes")) if number < 5 else Act(status, failure(status, reason, said))
        )

    async def ask(caller: ModelClient) -> None:
        for each in numbered(20):
            await asyncio.gather(caller.ask(each), return_exceptions=True)

    with GeminiServer(script) as server:
        caller = run(server, tmp_path, ask)
        assert server.seen.total() == 5 + most
    assert message.partition(" 42")[0] in str(caller.stopped)
    assert advice in str(caller.stopped).rpartition("(")[2]


PRICE = TokenPrice(read=1.0, written=1000.0)
"""A request of `numbered` may cost 0.1 dollars and a little; an answer costs a tenth of that."""


def test_the_budget_is_a_hard_stop(tmp_path: Path) -> None:
    """Never do requests that are on their way, with what is spent, pass the limit."""
    costs: list[float] = []

    def script(body: Body, times: int) -> Act:
        on_way = server.in_flight + 1
        spent = sum(server.answered.values()) * 0.0101
        costs.append(spent + on_way * 0.1)
        return Act(body=generated("yes", read=100, written=10), seconds=0.01)

    async def ask(caller: ModelClient) -> None:
        results = await asyncio.gather(*map(caller.ask, numbered(200)), return_exceptions=True)
        stops = [each for each in results if isinstance(each, CurationStopped)]
        assert 0 < len(stops) < 200
        assert "the budget of $1.0000 is used up" in str(stops[0])

    with GeminiServer(script) as server:
        caller = run(server, tmp_path, ask, limit=1.0, price=PRICE, concurrency=64)
        assert max(costs) <= 1.0 + 0.0101 * 10 + 0.001
        assert server.most_in_flight <= 9
        spent = caller.budget.spent / 1e12
        assert 0.85 < spent <= 1.0
        answered = server.answered.total()
        # A new run has the same money, not the same again.
        caller = run(server, tmp_path, ask_nothing, limit=1.0, price=PRICE)
        assert caller.budget.spent / 1e12 == spent
        assert server.answered.total() == answered


async def ask_nothing(caller: ModelClient) -> None:
    pass


def test_what_may_have_been_billed_counts_against_the_budget(tmp_path: Path) -> None:
    async def ask(caller: ModelClient) -> None:
        results = await asyncio.gather(*map(caller.ask, numbered(50)), return_exceptions=True)
        assert all(isinstance(each, CurationStopped | RequestUnanswered) for each in results)

    with GeminiServer(lambda _, times: Act(500, failure(500, "X"))) as server:
        caller = run(server, tmp_path, ask, limit=1.0, price=PRICE, retries=2)
        assert server.seen.total() == 9
        assert caller.budget.spent == 0
        assert 0.9 < caller.budget.doubtful / 1e12 <= 1.0
        caller = run(server, tmp_path, ask, limit=1.0, price=PRICE)
        assert server.seen.total() == 9
    with GeminiServer(lambda _, times: Act(429, failure(429, "X"))) as server:
        other = tmp_path / "other"
        other.mkdir()
        caller = run(server, other, ask, limit=1.0, price=PRICE, retries=1, concurrency=50)
        assert caller.budget.doubtful == 0  # a 429 is billed by nobody
        assert server.seen.total() == 100


def test_an_answer_without_token_counts_is_as_dear_as_it_can_be(tmp_path: Path) -> None:
    async def ask(caller: ModelClient) -> None:
        await caller.ask(numbered(1)[0])

    body = generated("yes")
    del body["usageMetadata"]
    with GeminiServer(lambda _, times: Act(body=body)) as server:
        caller = run(server, tmp_path, ask, price=PRICE)
    assert 0.1 < caller.budget.spent / 1e12 < 0.11


LARGE = 10**30
WRONG = (None, -1, -LARGE, 0, 10**9, LARGE, "many", "-5", 1.5, True, [1], {"n": 1}, float("nan"))


@pytest.mark.parametrize("count", WRONG)
@pytest.mark.parametrize("name", ["promptTokenCount", "candidatesTokenCount"])
def test_a_count_that_cannot_be_is_as_dear_as_it_can_be(
    tmp_path: Path, name: str, count: object
) -> None:
    """It lowers no ledger, the file's of later runs neither, and blows none up."""
    body = generated("yes")
    body["usageMetadata"] |= {name: count, "cachedContentTokenCount": 10**12}

    async def ask(caller: ModelClient) -> None:
        await asyncio.gather(*map(caller.ask, numbered(3)))

    price = TokenPrice(1.0, 0.0) if name == "promptTokenCount" else TokenPrice(0.0, 1.0)
    dear = 3 * max(price.most(each) for each in numbered(3))
    with GeminiServer(lambda _, times: Act(body=body)) as server:
        caller = run(server, tmp_path, ask, price=price)
    assert 0.5 * dear < caller.budget.spent <= dear
    used = caller.traffic.usage
    assert 0 <= used.cached <= used.prompt
    with GeminiServer() as server:
        assert run(server, tmp_path, ask_nothing).budget.spent == caller.budget.spent


def test_counts_as_text_and_as_floats_are_counts(tmp_path: Path) -> None:
    body = generated("yes")
    body["usageMetadata"] |= {"promptTokenCount": "100", "candidatesTokenCount": 7.0}
    assert asked(lambda _, times: Act(body=body)).usage == TokenUsage(100, 7)


def test_a_ledger_with_negative_costs_counts_them_as_nothing(tmp_path: Path) -> None:
    store = CurationStore(tmp_path / "answers.sqlite")
    for key, cost in (("a", 500), ("b", -400)):
        row = (key, "p", 0, ModelAnswer("x").to_json(), cost, 0.0)
        store._write.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)
    assert store.spent() == (500, 0)
    store.close()


@pytest.mark.parametrize(
    "text",
    [
        "```json\n{}\n```",
        "```\n{}\n```",
        "Sure! Here it is:\n\n```json\n{}\n```\nTell me if it is wrong.",
        "```JSON\n{}```",
        "```json {} ```",
        "```{}```",
        "```json\n{}",
        "~ a `word` ~\n```\n{}\n```",
        "```text\nI think ...\n```\n```json\n{}\n```",
        "```json\n{}\n```\nonce more:\n```json\n{}\n```",
        "  \n{}\n  ",
    ],
)
@pytest.mark.parametrize("title", ["a", "code: ```python\nx = 1\n``` and `y`"])
def test_json_in_a_code_fence_is_read(text: str, title: str) -> None:
    reply = StepsReply.model_validate(
        {"steps": [{"depth": 1, "title": title, "first": 1, "last": 1}]}
    )
    assert read_reply(StepsReply, text.replace("{}", reply.model_dump_json())) == reply


def test_fences_that_disagree_or_hold_nothing_are_refused() -> None:
    one, other = '{"steps": []}', '{"steps": [{"depth":1,"title":"a","first":1,"last":1}]}'
    with pytest.raises(UnusableAnswer, match="different answers"):
        read_reply(StepsReply, f"```json\n{one}\n```\n```json\n{other}\n```")
    for text in ("", "```", "```json\n```", "no", "```json\n{\n```", "```\n" * 2000):
        with pytest.raises(ValidationError):
            read_reply(StepsReply, text)


def test_prices() -> None:
    assert TokenPrice.parse("0.30,2.50").of(TokenUsage(10**6, 10**6, 10**6)) == 53 * 10**11
    for text in ("1", "1,2,3", "a,b", "-1,2", "nan,1"):
        with pytest.raises(InputError, match="--price"):
            TokenPrice.parse(text)


def test_no_minute_has_more_than_the_limits() -> None:
    now = 0.0
    sent: list[tuple[float, int]] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def go() -> None:
        pace = RateLimit(60, 1000, clock=lambda: now, sleep=sleep)
        for number in range(500):
            tokens = 10 + number % 40
            await pace.wait(tokens)
            sent.append((now, tokens))
            if number == 200:
                pace.pause(30)
        await pace.wait(5000)  # more than a minute may have: it goes alone

    asyncio.run(go())
    for index, (start, _) in enumerate(sent):
        window = [tokens for at, tokens in sent[index:] if at < start + 60]
        assert len(window) <= 60
        assert sum(window) <= 1000
    assert sent[201][0] - sent[200][0] >= 30
    assert now < 500 * 30 / 1000 * 60 + 200


def test_the_lowest_rank_goes_first_and_who_gives_up_takes_no_slot() -> None:
    order: list[int] = []

    async def work(slots: RankedSemaphore, rank: int) -> None:
        async with slots.taken(rank):
            order.append(rank)
            await asyncio.sleep(0.01)

    async def go() -> None:
        slots = RankedSemaphore(1)
        tasks = [asyncio.create_task(work(slots, rank)) for rank in (5, 4, 3, 2, 1)]
        await asyncio.sleep(0)
        tasks[1].cancel()  # while it waits
        tasks[0].cancel()  # while it works
        await asyncio.gather(*tasks, return_exceptions=True)
        await work(slots, 0)

    asyncio.run(go())
    assert order == [5, 1, 2, 3, 0]


def test_a_429_lets_all_others_wait(tmp_path: Path) -> None:
    times_seen: list[float] = []

    def script(body: Body, times: int) -> Act:
        times_seen.append(time.monotonic())
        if len(times_seen) == 1:
            return Act(429, failure(429, "X", "", RETRY_INFO | {"retryDelay": "0.5s"}))
        return scripted(body, times)

    async def ask(caller: ModelClient) -> None:
        await asyncio.gather(*map(caller.ask, numbered(5)))

    with GeminiServer(script) as server:
        run(server, tmp_path, ask, concurrency=1)
    assert times_seen[1] - times_seen[0] >= 0.5


def test_stopping_waits_for_what_is_on_its_way(tmp_path: Path) -> None:
    async def ask(caller: ModelClient) -> None:
        tasks = [asyncio.create_task(caller.ask(each)) for each in numbered(10)]
        await asyncio.sleep(0.3)
        caller.stop("enough")
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(each, ModelAnswer) for each in results) == 4
        assert sum(isinstance(each, CurationStopped) for each in results) == 6

    def slow(body: Body, times: int) -> Act:
        return Act(body=generated("yes"), seconds=0.8)

    with GeminiServer(slow) as server:
        caller = run(server, tmp_path, ask, concurrency=4)
    assert caller.traffic.answered == 4


def test_stopping_does_not_wait_for_a_pause(tmp_path: Path) -> None:
    async def ask(caller: ModelClient) -> None:
        task = asyncio.create_task(caller.ask(ASK))
        await asyncio.sleep(0.3)
        caller.stop("enough")
        start = time.monotonic()
        with pytest.raises(CurationStopped):
            await task
        assert time.monotonic() - start < 1

    hour = RETRY_INFO | {"retryDelay": "3600s"}
    with GeminiServer(lambda _, times: Act(429, failure(429, "X", "", hour))) as server:
        run(server, tmp_path, ask)


def test_counting_tokens_is_asked_of_the_service() -> None:
    async def count() -> int:
        async with gemini(server) as provider:
            return await provider.count(ASK)

    with GeminiServer() as server:
        assert asyncio.run(count()) > 5
        assert server.counted == 1
