"""Runs of `mvspec curate`: killed, resumed, out of money, in batches; what they leave behind."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
from bpe import chat_tokenizer
from curator_model import Scripted, chains
from gemini_server import Act, Body, GeminiServer, failure, generated, scripted

from mvspec.cli.curate import progress_line
from mvspec.compiler.compilation import CompilationOptions, compile_records
from mvspec.curation import (
    ChainFields,
    CurationOptions,
    CurationStore,
    ModelClient,
    ReasoningChain,
    SpendingLimit,
    TokenPrice,
    read_chain,
)
from mvspec.curation.gemini import GeminiProvider
from mvspec.curation.output import write_documents
from mvspec.curation.questions import Ask
from mvspec.curation.report import write_report
from mvspec.curation.run import CurationRun, CurationTally, TaskRun
from mvspec.curation.tasks import CurationTask
from mvspec.data.records import Fields, InputError
from mvspec.data.sources import open_records
from mvspec.tree.ir import Document

KEY = "test-key-that-nobody-may-see-4711"
ROOT = Path(__file__).parents[1]
LEFT = ("documents.jsonl", "documents.parquet", "quarantine.jsonl", "report.html", "report.json")


@contextmanager
def server_process(*options: str) -> Iterator[subprocess.Popen[str]]:
    """Serve in a process of its own, so that it does not share a core's time with the client."""
    command = [sys.executable, str(ROOT / "gemini_server.py"), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        it.url = f"http://127.0.0.1:{it.stdout.readline().strip()}"  # type: ignore[attr-defined]
        try:
            yield it
        finally:
            it.kill()


def journal(server: subprocess.Popen[str]) -> dict[str, int]:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("journal\n")
    server.stdin.flush()
    found: dict[str, int] = json.loads(server.stdout.readline())
    return found


def command(source: Path, folder: Path, url: str, *options: str) -> list[str]:
    base = [sys.executable, "-m", "mvspec", "curate", str(source), "-o", str(folder)]
    return [*base, "--model", "gemini-x", "--base-url", url, *options]


def curate(
    source: Path, folder: Path, url: str, *options: str, status: int | None = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(source, folder, url, *options),
        env=os.environ | {"GEMINI_API_KEY": KEY, "COLUMNS": "200"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if status is not None:
        assert done.returncode == status, done.stdout + done.stderr
    return done


def write_chains(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def left(folder: Path) -> dict[str, str]:
    """Return what a run leaves, as digests: all files but the store and the log of runs."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in LEFT
        if (folder / name).exists()
    }


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


NIGHTLY = os.environ.get("MVSPEC_PROFILE") == "nightly"


@pytest.mark.parametrize(
    ("victim", "kills"), [("command", 20 if NIGHTLY else 4), ("everything", 8 if NIGHTLY else 2)]
)
def test_killed_at_random_moments(tmp_path: Path, victim: str, kills: int) -> None:
    """Many records, many kills: nothing lost or repeated, and no answer is paid twice.

    A kill of the command leaves its child, which stores the answers that are on their way: the
    server sees no request twice that it has answered. Where the child is killed too, answers that
    had arrived within the last moment are asked for again, and no others.
    """
    records = 200 if NIGHTLY else 60
    source = write_chains(tmp_path / "chains.jsonl", chains(records, seed=3))
    options = ("--concurrency", "8", "--price", "0.3,2.5")
    with server_process() as whole:
        curate(source, tmp_path / "whole", whole.url, *options)  # type: ignore[attr-defined]
        once = journal(whole)
    assert once["seen"] == once["distinct"] == once["answered"]

    draw = random.Random(1)
    folder = tmp_path / "killed"
    kill = kill_all if victim == "everything" else subprocess.Popen.kill
    done = 0
    with server_process("--seconds", "0.02", "--troubles") as server:
        url: str = server.url  # type: ignore[attr-defined]
        while done < kills:
            with started(source, folder, url, *options) as process:
                start = time.monotonic()
                before = journal(server)["seen"]
                # Most of the kills while it asks: right from its first request on.
                while journal(server)["seen"] == before and process.poll() is None:
                    if time.monotonic() - start > 60:
                        break
                    time.sleep(0.01)
                time.sleep(draw.random() * draw.choice([0.0, 0.12, 0.5]))
                if process.poll() is not None:
                    break
                kill(process)
                done += 1
        for _ in range(3 if NIGHTLY else 1):  # and at any other moment, as while files are written
            with started(source, folder, url, *options) as process:
                time.sleep(1 + 2 * draw.random())
                if process.poll() is None:
                    kill(process)
        curate(source, folder, url, *options)
        found = journal(server)
    assert done >= 0.75 * kills
    if victim == "command":
        assert found["repeated"] == 0
    else:
        assert found["repeated"] <= (done + 3) * 8
    assert found["distinct"] == once["distinct"]
    assert left(folder) == left(tmp_path / "whole")
    assert len(lines(folder / "documents.jsonl")) == records


def started(source: Path, folder: Path, url: str, *options: str) -> subprocess.Popen[bytes]:
    """Start the command and let nobody read it."""
    return subprocess.Popen(
        command(source, folder, url, *options),
        env=os.environ | {"GEMINI_API_KEY": KEY},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and the child that would outlive it."""
    kill_children(process.pid)
    process.kill()


def kill_children(pid: int) -> None:
    """Kill the child of a command, which is where it works."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8")
    except OSError:
        pytest.skip("needs /proc")
    for child in map(int, children.split()):
        os.kill(child, signal.SIGKILL)


def test_concurrency_does_not_show(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(15, seed=5))
    with GeminiServer() as server:
        for number in (1, 7, 64):
            curate(source, tmp_path / str(number), server.url, "--concurrency", str(number))
    assert left(tmp_path / "1") == left(tmp_path / "7") == left(tmp_path / "64")


def test_output_has_documents_twins_and_provenance(tmp_path: Path) -> None:
    rows = chains(3)
    source = write_chains(tmp_path / "chains.jsonl", rows)
    with GeminiServer() as server:
        done = curate(source, tmp_path / "out", server.url, "--price", "1,2")
    assert "accepted" in done.stdout
    made = lines(tmp_path / "out" / "documents.jsonl")
    assert [row["id"] for row in made] == ["r0", "r1", "r2"]
    for row in made:
        Document.model_validate(row["document"])
        twin = Document.model_validate(row["autoregressive"])
        assert [message.role for message in twin.messages] == ["user", "assistant"]
        provenance = row["provenance"]
        assert provenance["model"] == "gemini-x"
        assert provenance["dollars"] > 0
        assert len(provenance["answers"]) == 6
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "out" / "documents.parquet").to_pylist()
    assert [json.loads(row["document"]) for row in table] == [row["document"] for row in made]
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["yield"] == 1
    assert report["blocks"] == 3
    assert report["answers"]["rewrite"] == 9
    (log,) = lines(tmp_path / "out" / "runs.jsonl")
    assert log["calls"] == log["answered"] == 18
    assert abs(log["dollars_all_runs"] - report["dollars"]) < 1e-9


def test_documents_and_their_twins_compile(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(4))
    chat_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with GeminiServer() as server:
        curate(source, tmp_path / "out", server.url)
    for field, parallel in (("document", True), ("autoregressive", False)):
        for name in ("documents.jsonl", "documents.parquet"):
            form = "json" if name.endswith("parquet") else "multiverse"
            fields = Fields(form, field)
            records = open_records([str(tmp_path / "out" / name)], fields, short=True)
            folder = tmp_path / f"{field}-{name}"
            made = compile_records(
                records, str(tmp_path / "tokenizer"), folder, CompilationOptions()
            )
            assert made.counts.to_dict()["quarantined"] == 0
            assert made.counts.records == 4
            mean = made.counts.to_dict()["mean_parallelism"]
            assert isinstance(mean, float)
            assert (mean > 1) is parallel


def test_a_budget_stops_and_more_money_goes_on(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(30))
    out = tmp_path / "out"
    with GeminiServer() as server:
        price = ("--price", "10,10", "--max-tokens", "256")
        done = curate(source, out, server.url, *price, "--budget", "0.6", status=1)
        assert "the budget of $0.6000 is used up" in done.stderr
        some = len(lines(out / "documents.jsonl"))
        assert 0 < some < 30
        assert len(lines(out / "unfinished.jsonl")) == 30 - some
        (log,) = lines(out / "runs.jsonl")
        assert log["dollars_all_runs"] <= 0.6
        curate(source, out, server.url, *price, "--budget", "50")
        assert server.repeated == []
    assert len(lines(out / "documents.jsonl")) == 30
    assert not (out / "unfinished.jsonl").exists()


def test_quarantine_keeps_the_whole_history(tmp_path: Path) -> None:
    def script(body: Body, times: int) -> Act:
        config = body.get("generationConfig", {})
        if config["responseJsonSchema"]["title"] == "Groups" and "Record 1 " in json.dumps(body):
            return Act(body=generated('{"groups": [{"reason": "", "paths": [["1"], ["7"]]}]}'))
        return scripted(body, times)

    rows: list[Any] = [*chains(3), {"id": "no"}, "text", {"id": "tag", "reasoning": "a <Path>"}]
    source = write_chains(tmp_path / "chains.jsonl", rows)
    with GeminiServer(script) as server:
        curate(source, tmp_path / "out", server.url, "--attempts", "2", status=1)
    bad = {each["record"]: each for each in lines(tmp_path / "out" / "quarantine.jsonl")}
    assert {name: each["code"] for name, each in bad.items()} == {
        "r1": "group", "no": "missing-field", "chains.jsonl:5": "missing-field", "tag": "tag",
    }  # fmt: skip
    history = bad["r1"]["history"]
    assert [event["step"] for event in history] == ["parse", "group", "group", "group"]
    assert all('"7"' in event["answer"] for event in history[1:])
    assert "there is no step '7'" in history[1]["problem"]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "there is no step &#x27;7&#x27;" in page


def test_other_options_use_the_answers_again(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(5))
    out = tmp_path / "out"
    with GeminiServer() as server:
        curate(source, out, server.url)
        before = server.seen.total()
        curate(source, out, server.url, "--max-distance", "0", "--attempts", "0", status=1)
        assert server.seen.total() == before
        assert len(lines(out / "quarantine.jsonl")) == 5
        curate(source, out, server.url)
        assert server.seen.total() == before
    assert len(lines(out / "documents.jsonl")) == 5


def test_interrupt_waits_for_what_is_paid_and_goes_on_later(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(40))
    out = tmp_path / "out"

    def slow(body: Body, times: int) -> Act:
        act = scripted(body, times)
        act.seconds = 0.3
        return act

    with GeminiServer(slow) as server:
        with subprocess.Popen(
            command(source, out, server.url, "--concurrency", "4"),
            env=os.environ | {"GEMINI_API_KEY": KEY},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # A shell's background jobs ignore Ctrl-C.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        ) as process:  # fmt: skip
            while server.seen.total() < 8:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "waiting for 4 answers that are paid for" in errors
        assert server.answered.total() == server.seen.total()
        server.script = scripted
        curate(source, out, server.url)
        assert server.repeated == []
    assert len(lines(out / "documents.jsonl")) == 40


@pytest.mark.parametrize("moment", [0.2, 0.6, 1.2, 2.0] if NIGHTLY else [0.6])
def test_an_interrupt_while_it_starts_ends_in_a_line(tmp_path: Path, moment: float) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(3))
    with (
        GeminiServer() as server,
        subprocess.Popen(
            command(source, tmp_path / "out", server.url),
            env=os.environ | {"GEMINI_API_KEY": KEY},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        ) as process,
    ):
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    # Where Python itself is still starting, nobody is there yet who could say anything.
    assert process.returncode in (130, -signal.SIGINT, 0)
    assert "Traceback" not in errors
    assert errors.count("\n") <= 4


def test_nohup_and_a_terminal_that_closes(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(6))

    def slow(body: Body, times: int) -> Act:
        act = scripted(body, times)
        act.seconds = 0.3
        return act

    def hung_up(folder: Path, start: list[str]) -> int:
        with subprocess.Popen(
            [*start, *command(source, folder, server.url, "--concurrency", "2")],
            env=os.environ | {"GEMINI_API_KEY": KEY},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            # Where the tests themselves run under nohup, it would be inherited.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        ) as process:  # fmt: skip
            before = server.seen.total()
            while server.seen.total() < before + 4:
                time.sleep(0.02)
            process.send_signal(signal.SIGHUP)
            return process.wait(timeout=60)

    with GeminiServer(slow) as server:
        assert hung_up(tmp_path / "one", ["nohup"]) == 0
        assert len(lines(tmp_path / "one" / "documents.jsonl")) == 6
        assert hung_up(tmp_path / "two", []) == 130
        assert server.answered.total() == server.seen.total()


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(4))
    out = tmp_path / "out"

    def slow(body: Body, times: int) -> Act:
        act = scripted(body, times)
        act.seconds = 60.0
        return act

    with GeminiServer(slow) as server, subprocess.Popen(
        command(source, out, server.url),
        env=os.environ | {"GEMINI_API_KEY": KEY},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while not server.seen:
            time.sleep(0.02)
        done = curate(source, out, server.url, status=2)
        assert "another run is writing it" in done.stderr
        kill_all(process)


def test_data_sets_and_parquet_are_read(tmp_path: Path) -> None:
    rows = [
        {
            "question": row["question"],
            "deepseek_thinking_trajectory": row["reasoning"],
            "deepseek_attempt": row["answer"],
            "metadata": "{}",
        }
        for row in chains(3)
    ]
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "rows.parquet"))
    for name in ("saved", "rows.parquet"):
        given = CurationRun((str(tmp_path / name),), CurationOptions("m"))
        found = [read_chain(row, given.fields) for row in given.records().read()]
        assert [chain.reasoning for chain in found] == [
            row["deepseek_thinking_trajectory"] for row in rows
        ]
        assert found[1].name == f"{name}[1]"


def test_a_worker_that_is_killed_is_said(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(6))

    def slow(body: Body, times: int) -> Act:
        act = scripted(body, times)
        act.seconds = 0.5
        return act

    with GeminiServer(slow) as server:
        with subprocess.Popen(
            command(source, tmp_path / "o", server.url),
            env=os.environ | {"GEMINI_API_KEY": KEY},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            while not server.seen:
                time.sleep(0.02)
            kill_children(process.pid)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGKILL
        assert "the worker ended by SIGKILL: run the same command again" in errors
        curate(source, tmp_path / "o", server.url)
    assert len(lines(tmp_path / "o" / "documents.jsonl")) == 6


def test_mistakes_are_said_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    source = str(write_chains(tmp_path / "chains.jsonl", chains(2)))
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine", "utf-8")
    wrong = str(write_chains(tmp_path / "wrong.jsonl", [{"text": "a"}] * 3))
    (tmp_path / "empty.jsonl").write_text("", "utf-8")
    new = tmp_path / "o"
    curation = CurationOptions("gemini-x")
    wrongs: list[tuple[str, Path, dict[str, Any], str]] = [
        (source, other, {}, "not empty, and not of a curation"),
        (source, new, {"budget": 1.0}, "--budget needs --price"),
        (source, new, {"task": "x"}, "use one of documents, branches, prompting"),
        (source, new, {"local": True, "batch": True}, "leave out --local"),
        (wrong, new, {}, "name the fields with --field"),
        (str(tmp_path / "empty.jsonl"), new, {}, "no record"),
        (str(tmp_path / "nothing.jsonl"), new, {}, "no such file"),
    ]
    with GeminiServer() as server:
        for name, folder, options, said in wrongs:
            given = CurationRun((name,), curation, base_url=server.url, **options)
            with pytest.raises(InputError, match=re.escape(said)):
                given.run(folder, None, print)
        assert not server.seen
    assert not new.exists()


def test_no_key(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(1))
    keys = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
    environment = {name: value for name, value in os.environ.items() if name not in keys}
    done = subprocess.run(
        command(source, tmp_path / "o", "http://127.0.0.1:9"),
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "set GEMINI_API_KEY" in done.stderr
    assert not (tmp_path / "o").exists()


def test_a_service_that_says_no_stops_and_is_said(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(20))
    no = Act(403, failure(403, "PERMISSION_DENIED", f"key {KEY} is not allowed"))
    with GeminiServer(lambda _, times: no) as server:
        done = curate(source, tmp_path / "o", server.url, "--concurrency", "2", status=1)
        assert server.seen.total() <= 2
    assert "stopped: HTTP 403: PERMISSION_DENIED key [key] is not allowed (" in done.stderr
    assert "not decided: 20 of 20: HTTP 403: PERMISSION_DENIED" in done.stderr
    for file in (tmp_path / "o").iterdir():
        assert KEY.encode() not in file.read_bytes()


def test_a_disk_that_fails_ends_the_run_and_is_said(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(5))
    store = CurationStore(tmp_path / "answers.sqlite")
    store._write.close()  # as good as a disk that is full: nothing more can be written

    async def all() -> None:
        caller = ModelClient(Scripted(), store, budget=SpendingLimit(None))
        records = open_records([str(source)], short=True)
        task = CurationTask(CurationOptions("m"))
        await TaskRun(records, ChainFields(), task, caller, store).run(3)

    with pytest.raises(InputError, match=re.escape("answers.sqlite")):
        asyncio.run(all())


def test_an_error_of_our_own_costs_one_record(tmp_path: Path) -> None:
    class Wrong(CurationTask):
        async def work(self, chain: ReasoningChain, ask: Ask) -> dict[str, Any]:
            if chain.name == "r1":
                raise KeyError("a bug")
            return await super().work(chain, ask)

    source = write_chains(tmp_path / "chains.jsonl", chains(3))
    store = CurationStore(tmp_path / "answers.sqlite")
    tally = CurationTally()

    async def all() -> None:
        caller = ModelClient(Scripted(), store, budget=SpendingLimit(None))
        records = open_records([str(source)], short=True)
        task = Wrong(CurationOptions("m"))
        await TaskRun(records, ChainFields(), task, caller, store, tally).run(3)

    asyncio.run(all())
    store.close()
    assert tally.accepted == 2
    assert tally.unfinished == [
        {
            "record": "r1",
            "place": "chains.jsonl:2",
            "reason": "internal error, please report it: KeyError: 'a bug'",
        }
    ]


def chaos(seed: int) -> Callable[[Body, int], Act]:
    """A service that fails in every way that is known of, and a model that is often wrong."""
    draw = random.Random(seed)

    def script(body: Body, times: int) -> Act:
        good = scripted(body, times)
        assert isinstance(good.body, dict)
        text = good.body["candidates"][0]["content"]["parts"][0]["text"]
        cut = text[: draw.randrange(len(text))]
        wrong = text.replace('"first": 3', f'"first": {draw.randrange(9)}')
        return draw.choice([
            *[good] * 12,
            Act(429, failure(429, "X"), headers={"Retry-After": "0.01"}),
            Act(500, failure(500, "X")),
            Act(502, b"<html>"),
            Act(drop="before"),
            Act(body=good.body, drop="half"),
            Act(body=b"[]"),
            Act(body=generated(cut, "MAX_TOKENS")),
            Act(body=generated(cut)),
            Act(body=generated("", "SAFETY")),
            Act(body=generated(wrong)),
            Act(body=generated("null")),
            Act(400, failure(400, "INVALID_ARGUMENT")),
        ])  # fmt: skip

    return script


def test_chaos_ends_with_verdicts(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(40))
    store = CurationStore(tmp_path / "answers.sqlite")
    tally = CurationTally()
    price = TokenPrice(1, 1)

    async def all(url: str) -> CurationTally:
        gemini = GeminiProvider(base_url=url, key=KEY, timeout=2)
        caller = ModelClient(
            gemini, store, budget=SpendingLimit(None), price=price, concurrency=8,
            first_wait=0.01, longest_wait=0.02,
        )  # fmt: skip
        tally = CurationTally()
        records = open_records([str(source)], short=True)
        task = CurationTask(CurationOptions("m", attempts=1))
        await TaskRun(records, ChainFields(), task, caller, store, tally).run(16)
        await gemini.aclose()
        return tally

    with GeminiServer(chaos(7)) as server:
        for _ in range(20):  # a run leaves undecided what the service refused
            tally = asyncio.run(all(server.url))
            assert tally.decided + len(tally.unfinished) == tally.records == 40
            if not tally.unfinished:
                break
    assert not tally.unfinished
    assert tally.accepted > 5
    assert len(tally.quarantined) > 0
    write_documents(tmp_path, store)
    for row in lines(tmp_path / "documents.jsonl"):
        Document.model_validate(row["document"])
    paid, _ = store.spent()
    store.close()
    assert paid > 0


def test_reports_take_names_and_texts_as_text(tmp_path: Path) -> None:
    rows = chains(2)
    evil = '"><script>alert(1)</script>'
    for row in rows:
        row["id"] = evil
        row["reasoning"] = row["reasoning"].replace("Let me", f"{evil} Let me")
    rows.append({"id": evil, "reasoning": "<Path>"})
    source = write_chains(tmp_path / "chains.jsonl", rows)
    given = CurationRun((str(source),), CurationOptions("gemini-x"))
    store = CurationStore(tmp_path / "answers.sqlite")

    async def all() -> None:
        caller = ModelClient(Scripted(), store, budget=SpendingLimit(None))
        task = CurationTask(given.curation)
        await TaskRun(given.records(), ChainFields(), task, caller, store).run(3)

    asyncio.run(all())
    found = write_report(tmp_path, store)
    store.close()
    assert (found["accepted"], found["quarantined"]) == (2, {"tag": 1})
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5


def test_progress_says_records_yield_cost_and_time() -> None:
    tally = CurationTally(records=60, accepted=30, share=0.25)
    tally.quarantined["group"] += 10
    none: Any = None
    caller = ModelClient(Scripted(), none, budget=SpendingLimit(20, 5 * 10**12))
    caller.traffic.calls, caller.traffic.in_flight = 240, 16
    caller.traffic.failures["HTTP 503"] = 3
    run = TaskRun(none, none, none, caller, none, tally)
    assert progress_line(run, 3600) == (
        "40 records (25%), yield 75%, $5.0000 of $20.0000, "
        "240 calls, 16 on their way, 3 failed, 3 h 00 min left"
    )


def test_dry_run_asks_for_nothing_but_token_counts(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(30))
    with GeminiServer() as server:
        done = curate(source, tmp_path / "o", server.url, "--dry-run", "--price", "0.3,2.5")
        assert server.counted == 10
        assert not server.seen
    assert "counted by the service on 10 records" in done.stdout
    assert "$" in done.stdout
    assert "assumed:" in done.stdout
    assert not (tmp_path / "o").exists()


BATCH = ("--batch", "--linger", "0.2", "--poll", "0.1")


def test_batches(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(12))
    with GeminiServer(polls=2) as server:
        curate(source, tmp_path / "one", server.url)
        curate(source, tmp_path / "many", server.url, *BATCH)
        assert len(server.batches) == 4  # one for each step: parse, group, frame, rewrite
        assert [len(job["requests"]) for job in server.batches.values()] == [12, 12, 12, 36]
        assert server.repeated == []
    assert left(tmp_path / "one") == left(tmp_path / "many")


def test_a_failed_request_of_a_batch_is_asked_again(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(4))
    bad: set[str] = set()

    def script(body: Body, times: int) -> Act:
        prompt = json.dumps(body["contents"])
        if "Record 2 " in prompt and "responseJsonSchema" in json.dumps(body) and len(bad) < 1:
            bad.add(prompt)
            return Act(500, failure(500, "INTERNAL", "try again"))
        return scripted(body, times)

    with GeminiServer(script) as server:
        curate(source, tmp_path / "o", server.url, *BATCH)
        assert len(server.batches) > 4
        assert len(server.repeated) == 1  # the one that failed
    assert bad
    assert len(lines(tmp_path / "o" / "documents.jsonl")) == 4


def test_killed_batches_are_found_again(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(6))
    out = tmp_path / "out"
    with GeminiServer(polls=10**9) as server:
        for _ in range(3):
            with started(source, out, server.url, *BATCH) as process:
                start = time.monotonic()
                while not server.batches and time.monotonic() - start < 30:
                    time.sleep(0.001)
                kill_all(process)
            # A batch that nobody has heard of is found by its display name.
        done = curate(source, out, server.url, status=2)
        assert "add --batch to take them up" in done.stderr
        server.polls = 0
        curate(source, out, server.url, *BATCH)
        assert server.repeated == []
        assert len(server.batches) == 4
    assert len(lines(out / "documents.jsonl")) == 6


def test_branches_and_what_people_say_of_them(tmp_path: Path) -> None:
    source = write_chains(tmp_path / "chains.jsonl", chains(3))
    out = tmp_path / "out"
    with GeminiServer() as server:
        curate(source, out, server.url, "--task", "branches")
        rows = lines(out / "branches.jsonl")
        assert len(rows) == 9
        assert {row["proposed"] for row in rows} == {"collective"}
        rows[0]["confirmed"] = True
        rows[1]["confirmed"] = "selective"
        rows[2]["confirmed"] = False
        write_chains(out / "branches.jsonl", rows)
        curate(source, out, server.url, "--task", "branches")
        assert lines(out / "branches.jsonl") == rows
        counts = json.loads((out / "counts.json").read_text("utf-8"))
        (out / "branches.jsonl").write_text("{", "utf-8")
        done = curate(source, out, server.url, "--task", "branches", status=2)
        assert "branches.jsonl:1" in done.stderr
    assert counts["chains_that_branch"] == 3
    assert counts["branches"] == {"collective": 9, "selective": 0}
    assert counts["people"] == {
        "confirmed": 1, "not looked at": 6, "of the other kind": 1, "refused": 1,
    }  # fmt: skip


def test_prompting(tmp_path: Path) -> None:
    def script(body: Body, times: int) -> Act:
        prompt = json.dumps(body["contents"])
        act = scripted(body, times)
        assert isinstance(act.body, dict)
        part = act.body["candidates"][0]["content"]["parts"][0]
        if "first" in prompt:
            part["text"] = "<Think>\nNo block.\n</Think>\n\nAnswer: 1"
        if "second" in prompt:
            part["text"] = part["text"].replace("<Path 2>", "<Path 3>")
        if "third" in prompt:
            return Act(body=generated("", "SAFETY"))
        return act

    rows = [
        {"id": name, "question": f"The {name}?"} for name in ("zero", "first", "second", "third")
    ]
    source = write_chains(tmp_path / "questions.jsonl", rows)
    out = tmp_path / "out"
    with GeminiServer(script) as server:
        curate(source, out, server.url, "--task", "prompting", status=1)
        assert "responseMimeType" not in server.bodies[0].get("generationConfig", {})
    counts = json.loads((out / "counts.json").read_text("utf-8"))
    assert counts["responses"] == 4
    assert counts["blocked"] == 1
    assert counts["well_formed"] == 2
    assert counts["well_formed_with_a_block"] == 1
    assert sum(counts["violations"].values()) == 1
    assert [row["id"] for row in lines(out / "prompting.jsonl")] == ["zero", "first", "second"]
