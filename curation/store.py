"""Store of paid answers and verdicts, in one SQLite file that survives kill -9.

SQLite and not a file of lines: an answer and its cost become durable together, an answer is found
by its key without holding all of them in memory, and a half-written line needs no repair.
Several answers that arrive together share one commit.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mvspec.curation.request import ModelAnswer, ModelRequest
from mvspec.data.records import InputError

FORMAT = 1
_TABLES = f"""
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, step TEXT, attempt INTEGER, answer TEXT, cost INTEGER, seconds REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sent (id INTEGER PRIMARY KEY, key TEXT, reserved INTEGER);
CREATE TABLE IF NOT EXISTS results (number INTEGER PRIMARY KEY, key TEXT, outcome TEXT);
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, name TEXT, keys TEXT, open INTEGER
) WITHOUT ROWID;
PRAGMA user_version = {FORMAT};
"""

Statement = tuple[str, tuple[Any, ...]]


class CurationStore:
    """Answers, requests sent, batches and results of one output folder.

    Writing returns when the disk has it. Money is counted in integers (`TokenPrice`), so that
    sums do not depend on their order.

    Raises:
        InputError: the file cannot be opened, or is of another program.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._read = self._open()
            self._write = self._open()
            (found,) = self._write.execute("PRAGMA user_version").fetchone()
            if found not in (0, FORMAT):
                raise InputError(
                    f"{path}: format {found}, and this mvspec reads {FORMAT}: use another folder, "
                    "or the version that made it"
                )
            self._write.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path}: {error}") from None
        self._thread = ThreadPoolExecutor(1, "store")
        self._waiting: list[Statement] = []
        self._next: asyncio.Task[None] | None = None
        self._latest: asyncio.Task[None] | None = None
        found = self._read.execute("SELECT ifnull(max(id), 0) FROM sent").fetchone()
        self._last = int(found[0])

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def close(self) -> None:
        """Close the file."""
        self._thread.shutdown()
        self._read.close()
        self._write.close()

    # Answers

    def answer(self, key: str) -> ModelAnswer | None:
        """Return the answer to the request of this key."""
        row = self._read.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else ModelAnswer.from_json(row[0])

    def spent(self) -> tuple[int, int]:
        """Return what all answers cost, and what unanswered requests may have cost.

        Those in a batch are left out: they are taken up again, and not paid a second time.
        """
        (paid,) = self._read.execute("SELECT ifnull(sum(max(cost, 0)), 0) FROM answers").fetchone()
        batched = {key for _, _, keys in self.batches() for key in keys}
        sent: list[tuple[str, int]] = self._read.execute(
            "SELECT key, reserved FROM sent"
        ).fetchall()
        return int(paid), sum(reserved for key, reserved in sent if key not in batched)

    def costs(self, keys: Sequence[str]) -> int:
        """Return what the answers of these keys cost together."""
        query = "SELECT ifnull(sum(cost), 0) FROM answers"
        some = " WHERE key IN (SELECT value FROM json_each(?))"
        (cost,) = self._read.execute(query + some, (json.dumps(list(keys)),)).fetchone()
        return int(cost)

    async def send(self, request: ModelRequest, reserved: int) -> int:
        """Note, before a request goes out, that it may cost so much; return the note's number."""
        number = self._last = self._last + 1
        note = "INSERT INTO sent VALUES (?, ?, ?)", (number, request.key, reserved)
        await self._commit(note)
        return number

    async def unsend(self, number: int) -> None:
        """Take back a note of `send`: the request was not billed."""
        await self._commit(("DELETE FROM sent WHERE id = ?", (number,)))

    async def save(
        self,
        request: ModelRequest,
        answer: ModelAnswer,
        cost: int,
        seconds: float,
        sent: int,
        *,
        once: bool,
    ) -> None:
        """Keep an answer and what it cost in place of its note.

        Args:
            once: the provider bills a request once however often it is asked, as a batch does.
        """
        row = (request.key, request.step, request.attempt, answer.to_json(), cost, seconds)
        insert = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)", row
        clear: Statement = ("DELETE FROM sent WHERE id = ?", (sent,))
        if once:
            clear = ("DELETE FROM sent WHERE key = ?", (request.key,))
        await self._commit(insert, clear)

    # Results

    def result(self, number: int, key: str) -> str | None:
        """Return the outcome of row `number` where it was made of what `key` stands for."""
        query = "SELECT outcome FROM results WHERE number = ? AND key = ?"
        row = self._read.execute(query, (number, key)).fetchone()
        return None if row is None else str(row[0])

    async def finish(self, number: int, key: str, outcome: str) -> None:
        """Keep the outcome of row `number`."""
        row = (number, key, outcome)
        await self._commit(("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", row))

    async def forget(self, number: int) -> None:
        """Drop the outcome of row `number`, where it has one: it was made with other options."""
        query = "SELECT 1 FROM results WHERE number = ?"
        if self._read.execute(query, (number,)).fetchone():
            await self._commit(("DELETE FROM results WHERE number = ?", (number,)))

    async def forget_from(self, number: int) -> None:
        """Drop the outcomes of rows that the input does not have."""
        await self._commit(("DELETE FROM results WHERE number >= ?", (number,)))

    def outcomes(self) -> Iterator[dict[str, Any]]:
        """Yield the outcomes in the order of the input."""
        for (text,) in self._read.execute("SELECT outcome FROM results ORDER BY number"):
            yield json.loads(text)

    # Batches

    def batches(self) -> list[tuple[str, str | None, list[str]]]:
        """Return id, name and request keys of every batch that has an answer to give."""
        rows = self._read.execute("SELECT id, name, keys FROM batches WHERE open ORDER BY id")
        found = [(id, name, json.loads(keys)) for id, name, keys in rows.fetchall()]
        return [
            (id, name, keys)
            for id, name, keys in found
            if any(self.answer(key) is None for key in keys)
        ]

    async def batch(self, id: str, name: str | None, keys: Sequence[str], *, open: bool) -> None:
        """Note a batch: before it is made, without a name; when it has one; when it has failed."""
        row = (id, name, json.dumps(list(keys)), open)
        await self._commit(("INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)", row))

    # Commits

    async def _commit(self, *statements: Statement) -> None:
        self._waiting += statements
        if self._next is None or self._next.done():
            self._next = self._latest = asyncio.create_task(self._commit_next(self._latest))
        # Whoever is cancelled while it waits leaves the others their commit.
        await asyncio.shield(self._next)

    async def _commit_next(self, before: asyncio.Task[None] | None) -> None:
        """Commit all that has come until the commit before has ended."""
        if before is not None and not before.done():
            await asyncio.wait([before])
        some, self._waiting, self._next = self._waiting, [], None
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._execute, some)
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: {error}") from None

    def _execute(self, statements: Sequence[Statement]) -> None:
        with self._write:  # commits, or rolls back
            self._write.execute("BEGIN")
            for text, values in statements:
                self._write.execute(text, values)
