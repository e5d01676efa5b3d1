"""The request that SGLang's scheduler has for a thread, and the rows of a batch that are threads'.

Any typed below as a thread is a `ThreadKV` of forked_request.py, which makes such requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@cache
def req_classes() -> tuple[type[Any], type[Any]]:
    """Return the classes of a thread's request of SGLang's, and of what it has for a grammar."""
    from sglang.srt.constrained.base_grammar_backend import BaseGrammarObject
    from sglang.srt.managers.schedule_batch import Req

    class ThreadReq(Req):  # type: ignore[misc]
        """A request whose `ForkedRequest` says what becomes of it, and answers its client."""

        thread_kv: Any
        position_shift = 0

        def update_finish_state(self, new_accepted_len: int = 1) -> None:
            """It ends when its run says so."""

        def next_output_finishes_by_length(self) -> bool:
            """Its budget is only what admission counts on: 0.5.23 drops what it says will end."""
            return False

    class ThreadGrammar(BaseGrammarObject):  # type: ignore[misc]
        """Lets its request be sampled after the results of the step before are known."""

        def __init__(self, req: Any) -> None:
            super().__init__()
            self.req = req

        def accept_token(self, token: int) -> None:
            """`ForkScheduler.take` takes the tokens of all threads at once."""

        def is_terminated(self) -> bool:
            return False

        def copy(self) -> Any:
            return self

    return ThreadReq, ThreadGrammar


def is_thread(req: Any) -> bool:
    """Whether a request of SGLang is, or was, a thread's."""
    return hasattr(req, "thread_kv")


def thread_of(req: Any) -> Any:
    """Return the thread of a request that still has its row; None for others."""
    thread = getattr(req, "thread_kv", None)
    return thread if thread is not None and thread.req is req else None


def thread_rows(grammars: Any) -> list[tuple[int, Any]]:
    """Return the rows of a batch that are threads', with the threads."""
    made = req_classes()[1]
    return [
        (row, thread)
        for row, grammar in enumerate(grammars or ())
        if type(grammar) is made and (thread := thread_of(grammar.req)) is not None
    ]


@contextmanager
def without_threads(info: Any) -> Iterator[None]:
    """Let SGLang mask only the requests whose grammar is its own."""
    before = info.grammars
    if before is None:
        yield
        return
    made = req_classes()[1]
    own = [None if type(grammar) is made else grammar for grammar in before]
    info.grammars = own if any(grammar is not None for grammar in own) else None
    try:
        yield
    finally:
        info.grammars = before
