"""Mutated requests to a server that forks, beside a stock one: what that survives, ours does.

    PYTHONPATH=tests python tests/serving/fuzz.py URL_OURS URL_STOCK --requests 2000 --seed 1

Bodies of /generate, /v1/chat/completions and /v1/completions, over every field of SGLang's own
models of a request: other types, extremes, texts that no text is, lists for scalars, fields that
nobody knows, tags, plans. A failure is a body that ours dies of, hangs on or answers with a status
of 500 and more, and stock does not; one that ours dies of at all where stock is known to; a fault
of the plugin. A server that died has to come back by itself: start both under a supervisor
(docs/serving.md has one). Prints a line of sums; the exit status says whether all was right.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from copy import deepcopy
from dataclasses import fields
from typing import Any

import httpx

import mvspec as mv
from mvspec.compiler.plan import Fork, Generate, Join
from mvspec.law.limits import Limits
from mvspec.runtime import Options, Sampling
from mvspec.runtime.serving.protocol import PlanPayload

GENERATE, CHAT, COMPLETION = "/generate", "/v1/chat/completions", "/v1/completions"
BLOCK = (
    "So <Parallel><Goal><Outline>1: One</Outline><Outline>2: Two</Outline></Goal>"
    "<Path>1: It is</Path><Path>2: It was</Path><Conclusion>Both.</Conclusion></Parallel>\n"
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
PLAN = PlanPayload(
    form="untagged",
    ops=(
        Fork(thread=0, paths=(1, 2)),
        Generate(thread=1, hole=mv.gen("a", 3, temperature=0.5)),
        Generate(thread=2, hole=mv.gen("b", choices=["tea", "coffee"])),
        Join(thread=3, paths=(1, 2)),
        Generate(thread=3, hole=mv.gen("c", 3)),
    ),
    options=Options(
        Sampling(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.2, seed=1),
        limits=Limits(max_tokens=40, max_seconds=9.0, max_depth=2),
    ),
    live=True,
).model_dump_json()

NUMBERS = [
    0, -1, 1, 2, 7, 0.5, -0.5, 1.0, 1.5, -2.5, 3, 40, 4096, 100_000, 1e39, -1e39, 3.5e38, 1e308,
    1e-320, 1e-46, float("nan"), float("inf"), float("-inf"), 2**31 - 1, 2**31, 2**32, 2**53 + 1,
    2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**30,
]  # fmt: skip
TEXTS = [
    "", " ", "a", "1", "-1", "NaN", "null", "\ud800", "a\udfff", "\x00", "\ufffe", "été 答案 🙂",
    "</Path>", "<Parallel>", "<Think>", BLOCK, "So", "[", "(", "{", "(a|b)*", "[a-c]{2}", "\\d+",
    "x" * 3000, "Well " * 900, 'root ::= "a" | "b"', json.dumps(SCHEMA), PLAN, "auto", "none",
]  # fmt: skip
SCALARS = ("logprob_start_len", "top_logprobs_num")
"""Lists of these kill a stock server where the request is one prompt."""

FEW = {"n", "best_of", "beam_width"}
"""Of these SGLang makes as many requests before it looks: what fits in memory is left out."""


DEEP = {
    json.dumps("@lists"): "[" * 5000 + "]" * 5000,
    json.dumps("@objects"): '{"a":' * 5000 + "1" + "}" * 5000,
}
"""What Python itself cannot write, by what stands for it in a body."""


def lethal(body: Any) -> bool:
    """Whether a body is one that a stock server is known to die of (docs/serving.md)."""
    if isinstance(body, list):
        return any(map(lethal, body))
    if not isinstance(body, dict):
        return False
    one = not isinstance(body.get("text"), list)
    if one and any(isinstance(body.get(name), list) for name in SCALARS):
        return True
    fields = {name: value for name, value in body.items() if name != "response_format"}
    return any(_kills(name, value) or lethal(value) for name, value in fields.items())


def _kills(name: str, value: Any) -> bool:
    if isinstance(value, list):
        return any(_kills(name, each) for each in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "logit_bias":
        each = value.values() if isinstance(value, dict) else ()
        return any(isinstance(one, int | float) and not one < 1e38 for one in each)
    if name == "top_k":
        return number and not value < 1 << 31
    if name in ("logprobs", "top_logprobs", "top_logprobs_num"):
        return number and value > 300
    if name == "positional_embed_overrides":
        return isinstance(value, str | int | float | dict)
    if name in ("max_new_tokens", "min_new_tokens"):
        return isinstance(value, float)
    if name == "priority":
        return number and abs(value) >= 1 << 31
    if name == "skip_special_tokens":
        return number
    if name == "is_normalized":
        return bool(value)
    return name in ("regex", "ebnf", "json_schema") and not isinstance(value, str | None)


class Fuzz:
    """A stream of mutated requests, the same for the same seed.

    Args:
        seed: of the stream.
    """

    def __init__(self, seed: int) -> None:
        from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
        from sglang.srt.managers.io_struct import GenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        self.draw = random.Random(seed)
        self.fields = {
            GENERATE: [each.name for each in fields(GenerateReqInput)],
            CHAT: list(ChatCompletionRequest.model_fields),
            COMPLETION: list(CompletionRequest.model_fields),
        }
        self.sampling = list(SamplingParams.__struct_fields__)
        self.types = {
            name: str(kind)
            for model in (
                GenerateReqInput,
                ChatCompletionRequest,
                CompletionRequest,
                SamplingParams,
            )
            for name, kind in model.__annotations__.items()
        }

    def request(self) -> tuple[str, str, bool]:
        """Return a path, the JSON that is sent there, and whether stock would die of it."""
        draw = self.draw
        path = draw.choice([GENERATE, CHAT, COMPLETION])
        body = deepcopy(self._valid(path))
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            kind = draw.random()
            if kind < 0.6:
                into, names = body, self.fields[path]
                if path == GENERATE and draw.random() < 0.6:
                    found = body.get("sampling_params")
                    if isinstance(found, dict):
                        into, names = found, self.sampling
                name = draw.choice(names)
                into[name] = self._value(name)
            elif kind < 0.95:
                self._change(body)
            else:
                body[draw.choice(["wings", "", "\ud800", "mvspec", "__class__"])] = self._value("")
        text = json.dumps(body)  # halves of characters stay escapes
        for name, deep in DEEP.items():
            text = text.replace(name, deep)
        cut = draw.randrange(len(text)) if draw.random() < 0.02 else None
        return path, text[:cut], cut is None and lethal(body)

    def _valid(self, path: str) -> dict[str, Any]:
        draw = self.draw
        settings: dict[str, Any] = {"temperature": draw.choice([0, 0.7, 1.0])}
        if draw.random() < 0.5:
            settings |= draw.choice(
                [
                    {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"frequency_penalty": 0.5},
                    {"presence_penalty": -0.5}, {"repetition_penalty": 1.2}, {"stop": ["one"]},
                    {"logit_bias": {"5": 1.0}}, {"n": 2}, {"stop_token_ids": [7]},
                    {"ignore_eos": True}, {"regex": "[ab]+"}, {"ebnf": 'root ::= "a" | "b"'},
                ]
            )  # fmt: skip
        if path == GENERATE:
            params = settings | {"max_new_tokens": draw.choice([1, 4, 12])}
            if draw.random() < 0.2:
                params["json_schema"] = json.dumps(SCHEMA)
            if draw.random() < 0.15:
                params = {"max_new_tokens": 9, "custom_params": {"mvspec": self._plan()}}
                return {"input_ids": [5, 6, 7], "sampling_params": params}
            prompt: dict[str, Any] = draw.choice([{"text": "Well?"}, {"input_ids": [5, 6, 7]},
                                  {"text": ["Well?", "So"]}, {"text": BLOCK}])  # fmt: skip
            more: dict[str, Any] = draw.choice([{}, {"return_logprob": True, "top_logprobs_num": 2},
                                {"return_logprob": True, "logprob_start_len": 0},
                                {"return_logprob": True, "token_ids_logprob": [1]}])  # fmt: skip
            return {"sampling_params": params, "stream": draw.random() < 0.2} | prompt | more
        settings |= {"max_tokens": draw.choice([1, 4, 12]), "stream": draw.random() < 0.2}
        settings |= draw.choice([{}, {}, {"seed": 3}, {"user": "me"}, {"min_tokens": 1}])
        if path == COMPLETION:
            text: Any = draw.choice(["Well?", ["Well?", "So"], [5, 6], [[5], [6, 7]], BLOCK])
            return settings | {"prompt": text, "logprobs": draw.choice([None, 2])}
        user = {"role": "user", "content": "Well?"}
        messages = draw.choice(
            [
                [user],
                [{"role": "system", "content": "Be brief."}, user],
                [user, {"role": "assistant", "content": BLOCK}, user],
                [{"role": "user", "content": [{"type": "text", "text": "Well?"}]}],
                [user, {"role": "assistant", "content": "So"}],
                [user, {"role": "assistant", "tool_calls": [{"id": "a", "type": "function",
                  "function": {"name": "f", "arguments": "{}"}}]},
                 {"role": "tool", "tool_call_id": "a", "content": "1"}],
            ]
        )  # fmt: skip
        function = {"name": "f", "description": "It is one.", "parameters": SCHEMA}
        more = draw.choice(
            [
                {}, {}, {"logprobs": True, "top_logprobs": 2},
                {"tools": [{"type": "function", "function": function}]},
                {"response_format": {"type": "json_object"}},
                {"response_format": {"type": "json_schema",
                                     "json_schema": {"name": "a", "schema": SCHEMA}}},
                {"chat_template_kwargs": {"enable_thinking": False}},
            ]
        )  # fmt: skip
        return settings | {"messages": messages} | more

    def _plan(self) -> Any:
        """Return a plan's JSON, mostly with something in it changed."""
        told = json.loads(PLAN)
        self._change(told)
        return json.dumps(told)

    def _value(self, name: str, depth: int = 0) -> Any:
        draw = self.draw
        kind = draw.random()
        if draw.random() < 0.5:  # of the type that is asked for, so that it comes far
            told = self.types.get(name, "")
            if "bool" in told:
                return draw.random() < 0.7
            kind = 0.0 if "float" in told or "int" in told else 0.5 if "str" in told else kind
        if kind < 0.4:
            found = draw.choice(NUMBERS)
            return 2 if name in FEW and isinstance(found, int) and 8 < found < 2**62 else found
        if kind < 0.7:
            return draw.choice(TEXTS)
        if kind < 0.8 or depth > 2:
            return draw.choice([None, True, False, [], {}])
        if kind < 0.9:
            return [self._value(name, depth + 1) for _ in range(draw.choice([1, 1, 2, 5]))]
        if kind < 0.98:
            names = ["a", "5", "-1", "type", "", "\ud800", "999999", "mvspec"]
            return {draw.choice(names): self._value("", depth + 1) for _ in range(2)}
        return draw.choice(["@lists", "@objects"])

    def _change(self, body: Any) -> None:
        """Replace, wrap, repeat or take out something of a body, at any depth."""
        draw = self.draw
        places: list[tuple[Any, Any]] = []
        open_ = [body]
        while open_:
            each = open_.pop()
            keys = list(each) if isinstance(each, dict) else range(len(each))
            places += [(each, key) for key in keys]
            open_ += [each[key] for key in keys if isinstance(each[key], dict | list)]
        if not places:
            return
        inside, key = draw.choice(places)
        kind = draw.randrange(5)
        if kind < 2:
            inside[key] = self._value(key if isinstance(key, str) else "")
        elif kind == 2:
            inside[key] = [deepcopy(inside[key])]
        elif kind == 3:
            inside[key] = {"a": deepcopy(inside[key])}
        else:
            del inside[key]


class Side:
    """One of the two servers.

    Args:
        url: where it answers.
        patience: seconds that an answer may take, and a dead server to come back.
    """

    def __init__(self, url: str, patience: float = 30.0, comeback: float = 300.0) -> None:
        self.url = url
        self.comeback = comeback
        self.client = httpx.Client(timeout=httpx.Timeout(patience, connect=5.0))

    def send(self, path: str, content: str) -> str:
        """Return the status of an answer; "died" or "hung" where there was none."""
        try:
            with self.client.stream(
                "POST", self.url + path, content=content,
                headers={"Content-Type": "application/json"},
            ) as answer:  # fmt: skip
                answer.read()
                status = answer.status_code
        except httpx.TimeoutException:
            return "hung" if self.lives() else "died"
        except httpx.TransportError:
            return "broke off" if self.lives() else "died"
        return str(status) if self.lives() else "died"

    def lives(self) -> bool:
        """Whether it writes a token."""
        body = {"text": "So", "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
        for _ in range(2):
            try:
                return self.client.post(f"{self.url}{GENERATE}", json=body).status_code == 200
            except httpx.ConnectError:
                return False
            except httpx.TransportError:
                continue  # the connection went with the request before
        return False

    def wait(self) -> None:
        """Wait until a supervisor has started it again."""
        until = time.monotonic() + self.comeback
        while not self.lives():
            if time.monotonic() > until:
                raise SystemExit(f"{self.url} died and did not come back")
            time.sleep(1.0)


def fuzz(
    ours: Side, stock: Side, requests: int, seed: int, *, both: bool = False
) -> tuple[Counter[str], list[str]]:
    """Send mutated requests; return sums of statuses, and what ours should not have done.

    Args:
        both: whether the stock server gets all of them, but for those that it is known to die of.
            Else it gets those that ours has not answered with a status below 500.
    """
    made, sums, wrong = Fuzz(seed), Counter[str](), list[str]()
    for side in (ours, stock):
        side.wait()
    start = time.monotonic()
    for number in range(requests):
        path, content, kills = made.request()
        found = ours.send(path, content)
        failed = not found.isdigit() or int(found) >= 500
        wanted = "died" if kills else stock.send(path, content) if both or failed else found
        sums[found if found == wanted else f"{found} (stock: {wanted})"] += 1
        if found != wanted or found == "died":
            told = f"{number}: {found} where stock says {wanted}: {path} {content[:1500]}"
            print(told, flush=True)
            if failed and (kills or wanted != "died"):
                wrong.append(told)
        for side, status in ((ours, found), (stock, wanted)):
            if status == "died" and not (side is stock and kills):
                side.wait()
        if (number + 1) % 100 == 0:
            seconds = time.monotonic() - start
            print(f"{number + 1} of {requests}, {seconds:.0f} s, {dict(sums)}", flush=True)
    state = ours.client.get(f"{ours.url}/server_info").json()["internal_states"][0]["mvspec"]
    if faults := state["counters"]["faults"]:
        wrong.append(f"{faults} faults of mvspec: see the log")
    return sums, wrong


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("ours")
    parser.add_argument("stock")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--both", action="store_true")
    args = parser.parse_args()
    sides = Side(args.ours), Side(args.stock)
    sums, wrong = fuzz(*sides, args.requests, args.seed, both=args.both)
    print(f"{args.requests} requests: {dict(sums)}, {len(wrong)} wrong")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
