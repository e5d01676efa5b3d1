"""Compare Multiverse with its baselines: from the same weights, on the same problems.

    python examples/parity/parity.py examples/parity/tiny.yaml --out build/parity

Killed and started again it goes on where it was; with the same settings a finished one only
writes its report again. README.md beside this file says what the arms are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from mvspec.compiler.vocabulary import load_tokenizer
from mvspec.errors import MvspecError, VerifyError
from mvspec.runtime import default_model
from mvspec.runtime.tasks.arithmetic import arithmetic_model
from mvspec.runtime.tasks.examination import means
from mvspec.runtime.tasks.problem import STEPWISE

from arms import Arm, chosen, find_arm, worded  # isort: skip
from clock import Clock, held_out, server_of  # isort: skip
from fitting import OutOfTime, fit  # isort: skip
from report import Records, write_report  # isort: skip
from sets import mixture, packed  # isort: skip
from settings import Settings, load_settings  # isort: skip

BASE_SEED = 1_000_000
"""Seed of the base's problems: none of an arm's."""


class Comparison:
    """All runs of one folder.

    Args:
        settings: what is compared.
        folder: where everything is kept.
        workers: processes that compile documents.
        seconds: of this call; without end where it is None.
        only: (arm, seed) that this call does, where others do the rest; None for all.

    Raises:
        Unsupported: the settings name an arm that there is not.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        *,
        workers: int,
        seconds: float | None,
        only: set[tuple[str, int]] | None = None,
    ) -> None:
        how = settings.evaluation
        for name in (*settings.arms, *(how.alone or ()), *(how.zero or ())):
            find_arm(name)
        self.only = only
        self.settings = settings
        self.folder = folder
        # One pool for all runs: a worker takes seconds to import what it needs.
        self.pool = ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 else None
        self.end = None if seconds is None else time.monotonic() + seconds
        self.records = Records(folder / "results.jsonl")
        self.known = folder / "settings.json"
        self.tokenizer = folder / "tokenizer"
        self.clock = Clock(
            settings, self.records, lambda arm: self.model(arm, settings.seeds[0]), folder / "words"
        )

    def begin(self) -> None:
        """Make the folder, or see that it is of the same comparison.

        Raises:
            VerifyError: it is of another.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.check_settings()
        make(self.tokenizer, self.first_tokenizer)
        if any(find_arm(name).serving == "text" for name in self.settings.arms):
            make(self.clock.words, lambda: worded(self.tokenizer))
        if not self.known.exists():  # whole, since another call may read it
            part = self.known.with_name(f"{self.known.name}.{os.getpid()}.part")
            part.write_text(self.settings.model_dump_json(indent=2), encoding="utf-8")
            part.replace(self.known)

    def check_settings(self) -> None:
        """See that the folder, where it is one of a comparison, is of this one.

        Raises:
            VerifyError: it is of another.
        """
        said = self.settings.model_dump_json(indent=2)
        if self.known.exists() and self.known.read_text(encoding="utf-8") != said:
            raise VerifyError(str(self.folder), "is of other settings: name another folder")

    def initial(self) -> Any:
        """Return what weights are made of: a config, or a folder."""
        model = self.settings.model
        return str(default_model()) if model == "default" else model

    def first_tokenizer(self) -> Any:
        """Return the tokenizer of all arms, with tags."""
        source = self.settings.tokenizer
        if source is None:
            initial = self.initial()
            source = initial if isinstance(initial, str) else str(arithmetic_model())
        return load_tokenizer(source, tags=True)

    def left(self) -> float | None:
        """Return the seconds that are left.

        Raises:
            OutOfTime: none are.
        """
        if self.end is None:
            return None
        left = self.end - time.monotonic()
        if left <= 0:
            raise OutOfTime
        return left

    def run(self) -> None:
        """Do all that is not done yet."""
        arms = [find_arm(name) for name in self.settings.arms]
        self.begin()
        source = self.initial()
        if self.settings.base is not None:
            base = self.folder / "models" / "base"
            self.train("base", find_arm("autoregressive"), source, BASE_SEED, base)
            source = str(base)
        for seed in self.settings.seeds:
            for arm in arms:
                if self.only is not None and (arm.name, seed) not in self.only:
                    continue
                self.train(arm.name, arm, source, seed, self.model(arm, seed))
                self.examine(arm, seed, arm.prompt)
                if arm.structured and self.settings.evaluation.asks_zero(arm.name):
                    self.examine(arm, seed, STEPWISE)
            if seed == self.settings.seeds[0] and self.only is None:
                self.left()
                times = self.settings.evaluation.times
                self.clock.in_process([arm for arm in arms if times(arm.name)])

    def model(self, arm: Arm, seed: int) -> Path:
        """Return the folder of an arm's weights."""
        name = arm.name.replace("(", "-").replace(")", "")
        return self.folder / "models" / f"{name}-{seed}"

    def train(self, name: str, arm: Arm, source: Any, seed: int, folder: Path) -> None:
        """Train one model, or wait for the call that does; nothing where it is there."""
        if folder.is_dir():
            return
        left = self.left()
        folder.parent.mkdir(exist_ok=True)
        try:
            with FileLock(folder.with_suffix(".lock"), timeout=-1 if left is None else left):
                if not folder.is_dir():
                    self._train(name, arm, source, seed, folder)
        except Timeout:
            raise OutOfTime from None

    def _train(self, name: str, arm: Arm, source: Any, seed: int, folder: Path) -> None:
        self.left()
        base = self.settings.base
        how = base if name == "base" and base is not None else self.settings.fit
        started = time.perf_counter()
        cpu = time.process_time()
        items = mixture(how, arm.lowering, seed, self.settings.difficulty)
        rows = packed(items, how, str(self.tokenizer), self.pool)
        compiled = time.perf_counter() - started
        tell(f"{name}, seed {seed}: {len(items)} problems in {len(rows)} rows of {how.length}")
        fitted = fit(
            source, rows, folder, self.settings, how,
            tokenizer=str(self.tokenizer), tell=tell, seconds=self.left(),
        )  # fmt: skip
        real = sum(int((row.document_ids >= 0).sum()) for row in rows)
        self.records.add(
            kind="fit", arm=name, seed=seed, steps=fitted.steps, loss=fitted.loss,
            problems=len(items), tokens=real, compile_seconds=compiled,
            seconds=time.perf_counter() - started - compiled,
            cpu_seconds=time.process_time() - cpu,
        )  # fmt: skip

    def examine(self, arm: Arm, seed: int, prompt: str) -> None:
        """Ask one model the held-out problems."""
        key = {"kind": "exam", "arm": arm.name, "seed": seed, "prompt": prompt}
        if self.records.find(**key):
            return
        self.left()
        how = self.settings.evaluation
        engine = arm.engine(self.model(arm, seed), max_concurrent_requests=how.batch)
        started = time.perf_counter()
        marks = list(
            arm.examine(
                engine, held_out(self.settings, how.problems), prompt=prompt, batch=how.batch,
                max_tokens=how.max_tokens,
            )
        )  # fmt: skip
        found = means(mark for mark in marks)
        self.records.add(**key, problems=len(marks), seconds=time.perf_counter() - started, **found)
        tell(f"{arm.name}, seed {seed}, {prompt!r}: {found['right']:.3f} right, "
             f"# parallel {found['parallelism']:.2f}")  # fmt: skip
        self.report()

    def report(self) -> None:
        """Write the tables and the plot of what there is.

        Raises:
            VerifyError: it is of another comparison.
        """
        self.check_settings()
        write_report(self.records.rows, self.settings, self.folder, device=device())


def make(folder: Path, tokenizer: Callable[[], Any]) -> None:
    """Write a tokenizer's folder where there is none; several calls may do so at once."""
    if folder.is_dir():
        return
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    tokenizer().save_pretrained(part)
    try:
        part.replace(folder)
    except OSError:  # another was faster
        shutil.rmtree(part)


def device() -> str:
    """Return what computes, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return "CPU, one thread" if threads == 1 else f"CPU, {threads} threads"


def tell(line: str) -> None:
    """Say on a terminal or in a log how far things are."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Run or go on, and write the report."""
    parser = argparse.ArgumentParser(description="Compare Multiverse with its baselines.")
    parser.add_argument("settings", type=Path, help="a YAML file, as tiny.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder of all that is made")
    parser.add_argument("--minutes", type=float, help="stop after so many; call again to go on")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", action="store_true", help="write the report, and no more")
    parser.add_argument("--only", nargs="+", metavar="ARM:SEED", default=None,
                        help="do only these, or base: a call for each GPU")  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="every stage in miniature")
    parser.add_argument("--url", action="append", default=[], metavar="ARM=URL",
                        help="measure an arm that a server of SGLang serves")  # fmt: skip
    given = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    try:
        settings = load_settings(given.settings)
        settings = settings.smoke() if given.smoke else settings
        servers = [server_of(each) for each in given.url]
        seconds = None if given.minutes is None else 60 * given.minutes
        comparison = Comparison(
            settings, given.out, workers=given.workers, seconds=seconds,
            only=chosen(given.only, settings.arms, settings.seeds),
        )  # fmt: skip
        try:
            if given.report and not comparison.records.rows:
                raise VerifyError(str(comparison.records.path), "there is nothing to report")
            if not given.report:
                comparison.run()
                comparison.clock.both(servers)
        except OutOfTime:
            tell("out of time: run the same command again to go on")
        comparison.report()
        if comparison.pool:
            comparison.pool.shutdown(cancel_futures=True)
    except MvspecError as error:
        sys.exit(f"parity: {error}")
    except OSError as error:  # a full disk, a folder that is none: what was done is kept
        sys.exit(f"parity: {error.filename or given.out}: {error.strerror or error}")
    print((given.out / "results.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
