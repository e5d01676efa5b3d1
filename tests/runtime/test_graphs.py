"""Steps as CUDA graphs read them: the same logits, whatever fills a graph's rows up.

Nothing is captured on a CPU; what a graph would launch runs each time, over the same table. The
kernels are Triton's own interpreter where it is installed, and elsewhere their definition, which
reads the same addresses. benchmarks/graph_check.py holds the laws on a GPU.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np  # noqa: E402
import transformers  # noqa: E402
from bpe import small_tokenizer  # noqa: E402
from tiny import KINDS, tiny_engine  # noqa: E402
from torch import Tensor  # noqa: E402
from traces import CANONICAL  # noqa: E402

import mvspec as mv  # noqa: E402
from mvspec.law.threads import sees  # noqa: E402
from mvspec.runtime import Options, Result, TorchEngine  # noqa: E402
from mvspec.runtime.engine import graphs  # noqa: E402
from mvspec.runtime.engine.attention import SlicedAttention, TokenChunk  # noqa: E402
from mvspec.runtime.engine.graphs import CudaGraphs, GraphInputs, bucket  # noqa: E402
from mvspec.runtime.engine.kv_cache import KVCache  # noqa: E402
from mvspec.runtime.engine.model import EngineModel  # noqa: E402

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 1,
}  # fmt: skip
DECODE = Options(decode=True, logits=True)


def lying_at(address: int, shape: Sequence[int], dtype: Any) -> Tensor:
    """Return the tensor that lies at an address."""
    size = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    memory = (ctypes.c_char * size).from_address(address)
    tensor: Tensor = torch.frombuffer(memory, dtype=dtype).view(*shape)
    return tensor


def write(new: Tensor, pointers: Tensor, capacities: Tensor, columns: Tensor) -> None:
    """As kernels.write says."""
    _, heads, rows, dim = new.shape
    for row in range(rows):
        if columns[row] >= 0:
            shape = (heads, int(capacities[row]), dim)
            lying_at(int(pointers[row]), shape, new.dtype)[:, columns[row]] = new[0, :, row]


def read(
    query: Tensor, keys: Tensor, values: Tensor, capacities: Tensor, columns: Tensor,
    table: Tensor, groups: int, width: int, scale: float,
) -> Tensor:  # fmt: skip
    """As kernels.read says."""
    _, heads, rows, dim = query.shape
    out = query.new_zeros(1, rows, heads, width)
    seen = lying_at(int(table[0]), (rows, int(table[1])), torch.bool)
    for row in range(rows):
        end, capacity = int(columns[row]) + 1, int(capacities[row])
        shown = seen[row, :end].nonzero()[:, 0]
        if not len(shown):
            continue
        key = lying_at(int(keys[row]), (groups, capacity, dim), query.dtype)[:, shown]
        value = lying_at(int(values[row]), (groups, capacity, width), query.dtype)[:, shown]
        asked = query[0, :, row].view(groups, heads // groups, dim)
        weights = torch.softmax(asked @ key.transpose(1, 2) * scale, -1)
        out[0, row] = (weights @ value).view(heads, width)
    return out


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernels' definition stand where no GPU is."""
    defined: Any = SimpleNamespace(write=write, read=read)
    monkeypatch.setitem(sys.modules, "mvspec.runtime.engine.kernels", defined)
    monkeypatch.setattr("mvspec.runtime.engine.kernels", defined, raising=False)


class Uncaptured(CudaGraphs):
    """Launches again what a graph would replay.

    Args:
        fill: rows of a table for each row of its bucket.
        lie: what the "graph" makes of its logits.
    """

    def __init__(
        self, model: EngineModel, fill: int = 1, lie: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        with pytest.warns(UserWarning, match="without CUDA graphs: "):
            super().__init__(model.model, model._read)
        assert self.off
        self.off = ""
        self.fill = fill
        self.lie = lie or (lambda logits: logits)

    def _capture(self, rows: int, layers: int) -> bool:
        table = GraphInputs(rows * self.fill, layers, CPU)
        logits = self._read(table.ids, table.positions, 0, table)

        def replay() -> None:
            logits.copy_(self.lie(self._read(table.ids, table.positions, 0, table)))

        graph: Any = SimpleNamespace(replay=replay)
        self._made[rows] = table, graph, logits
        return True


def graphed(kind: str = "Llama", **more: Any) -> tuple[TorchEngine, Uncaptured]:
    engine = tiny_engine(kind, small_tokenizer())
    made = Uncaptured(engine.model, **more)
    engine.model.graphs = made
    return engine, made


def document() -> mv.Document:
    return mv.document(mv.parse(CANONICAL).messages[0])


def largest(first: Result, second: Result) -> float:
    """Return the largest difference of the logits of two runs."""
    assert first.logits is not None
    assert second.logits is not None
    pairs = [
        (a, b) for a, b in zip(first.logits, second.logits, strict=True)
        if a is not None and b is not None
    ]  # fmt: skip
    assert len(pairs) > 40
    return max(float((a - b).abs().max()) for a, b in pairs)


# The table


def parts(
    widths: Sequence[tuple[int, list[int]]], dtype: Any, dims: tuple[int, int]
) -> list[TokenChunk]:
    """Return new tokens over caches of random keys; half of the slots are hidden at random."""
    draw, random = torch.Generator().manual_seed(1), np.random.default_rng(1)
    made = []
    for used, rows in widths:
        store = KVCache(CPU)
        store.allocate(7, used)
        key, value = (torch.randn(1, 2, used, dim, generator=draw, dtype=dtype) for dim in dims)
        store.write(0, key, value, 0)
        store.visible[:, :used] = random.random((8, used)) < 0.5
        start = store.used
        for row in rows:
            store.allocate(row, 1)
        made.append(TokenChunk(store, [1] * len(rows), [0] * len(rows), rows, start, [0]))
    return made


WIDTHS = [(70, [0, 2, 2]), (5, [1]), (300, [3])]


def attends(dtype: Any, dims: tuple[int, int], spare: int) -> float:
    """Return how far a table's rows are from an attention for each part."""
    draw = torch.Generator().manual_seed(2)
    query, key, value = (
        torch.randn(1, 5 + spare, heads, dim, generator=draw, dtype=dtype).transpose(1, 2)
        for heads, dim in ((6, dims[0]), (2, dims[0]), (2, dims[1]))
    )
    apart, together = parts(WIDTHS, dtype, dims), parts(WIDTHS, dtype, dims)
    expected = SlicedAttention(apart, dtype, CPU).attend(0, query, key, value, None)
    table = GraphInputs(5 + spare, 1, CPU)
    table.fill(together, [0, 4])
    found = table.attend(0, query, key, value, None)
    assert table.kept(2).tolist() == [0, 4]
    assert table.ids.tolist() == [[1] * 5 + [0] * spare]
    assert not found[:, 5:].any()  # rows of no request see nothing, and are not kept
    for one, other in zip(apart, together, strict=True):
        assert torch.equal(one.cache.keys[0], other.cache.keys[0])
        assert torch.equal(one.cache.values[0], other.cache.values[0])
    return float((found - expected)[:, :5].abs().max())


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("spare", [0, 3])
def test_a_table_reads_what_an_attention_for_each_part_reads(spare: int) -> None:
    assert attends(torch.float64, (8, 12), spare) < 1e-12


@pytest.mark.skipif(
    not os.environ.get("TRITON_INTERPRET"),
    reason="needs Triton's interpreter: set TRITON_INTERPRET=1 where triton is installed",
)
@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("dims", [(8, 8), (24, 12)])
def test_the_kernels_do_as_they_say(dtype: str, most: float, dims: tuple[int, int]) -> None:
    """Hidden columns, several splits, heads that are no power of two."""
    assert attends(getattr(torch, dtype), dims, 3) < most


def test_a_bucket_holds_its_tokens() -> None:
    for count in range(1, 300):
        assert count <= bucket(count) < 2 * count


# Runs


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [1, 3])
def test_rows_that_fill_up_change_nothing(kind: str, fill: int) -> None:
    """Requests of other lengths in one step, prompts and forks between: training's logits."""
    plain = tiny_engine(kind, small_tokenizer())
    engine, made = graphed(kind, fill=fill)
    runs = [document()] * 3
    for _ in range(3):  # the first lets most sizes be captured
        results = engine.run_many(runs, DECODE)
    expected = plain.run(runs[0], DECODE)
    assert not made.off
    assert made.replays > engine.scheduler.steps / 2
    assert len(made._made) > 1
    for result in results:
        assert result.trace.ids == expected.trace.ids
        assert largest(result, expected) < 1e-12


@pytest.mark.usefixtures("kernels")
def test_siblings_do_not_interfere_in_a_graph() -> None:
    """Law 7 where both runs read every step from a graph."""
    engine, made = graphed()
    for _ in range(5):
        before = engine.run(document(), DECODE)
    replays, trace = made.replays, before.trace
    changed = next(i for i, owner in enumerate(trace.thread_ids) if owner == 2)
    ids = list(trace.ids)
    ids[changed] = (ids[changed] + 1) % 250
    after = engine.run(trace.model_copy(update={"ids": tuple(ids)}).plan, DECODE)
    assert made.replays > replays + 10
    assert before.logits is not None
    assert after.logits is not None
    moved = 0
    for index, (a, b) in enumerate(zip(before.logits, after.logits, strict=True)):
        if a is None or b is None:
            continue
        if index < changed or not sees(trace.chain(trace.thread_ids[index]), trace.chain(2)):
            assert torch.equal(a, b)
        else:
            moved += not torch.equal(a, b)
    assert moved > 5


@pytest.mark.usefixtures("kernels")
def test_a_graph_that_says_something_else_is_not_used() -> None:
    plain = tiny_engine("Llama", small_tokenizer())
    engine, made = graphed(lie=lambda logits: -logits)
    with pytest.warns(UserWarning, match="without CUDA graphs: its graph gives other logits"):
        result = engine.run(document(), DECODE)
    assert made.replays == 1
    assert largest(result, plain.run(document(), DECODE)) < 1e-12
    again = engine.run(document(), DECODE)
    assert made.replays == 1
    assert largest(again, result) < 1e-12


@pytest.mark.usefixtures("kernels")
def test_large_and_rare_steps_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("MAX_ROWS", 2), ("MAX_COLUMNS", 40), ("PATIENCE", 10**6)):
        with monkeypatch.context() as patch:
            patch.setattr(graphs, name, most)
            engine, made = graphed()
            for _ in range(3):
                engine.run(document(), DECODE)
        if name == "MAX_ROWS":
            assert set(made._made) <= {1, 2}
        if name == "PATIENCE":
            assert not made._made
        else:
            assert 0 < made.replays < engine.scheduler.steps


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("rows", "columns"), [(256, 1 << 20), (3, 1 << 20), (256, 50)])
def test_requests_that_begin_leave_the_others_in_graphs(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int
) -> None:
    """Steps of running requests and a new one's prompt, and such as take several graphs."""
    monkeypatch.setattr(graphs, "MAX_ROWS", rows)
    monkeypatch.setattr(graphs, "MAX_COLUMNS", columns)
    monkeypatch.setattr(graphs, "PATIENCE", 0)
    plain = tiny_engine("Llama", small_tokenizer())
    engine, made = graphed()
    expected = plain.run(document(), DECODE)
    running = [engine.submit(document(), DECODE, name=str(index)) for index in range(5)]
    for _ in range(10):
        engine.step()
    replays = made.replays
    late = engine.submit(document(), DECODE, name="late")
    engine.step()
    assert made.replays - replays == (1 if rows == 256 and columns > 50 else 2)
    while engine.step():
        pass
    assert not made.off
    for request in (*running, late):
        result = engine.result(request)
        assert result.trace.ids == expected.trace.ids
        assert largest(result, expected) < 1e-12


def test_a_model_with_a_hook_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python does in a forward would happen once."""
    monkeypatch.setattr(graphs, "find_spec", lambda name: name)
    exact = tiny_engine("Llama", small_tokenizer()).model
    with pytest.warns(UserWarning, match=r"without CUDA graphs: .* compute in torch\.float64"):
        CudaGraphs(exact.model, exact._read)
    load: Any = transformers.LlamaForCausalLM
    model = EngineModel(load(transformers.LlamaConfig(**SMALL)).eval())
    assert model.graphs is None  # on a CPU there are none, and nobody is warned
    assert not CudaGraphs(model.model, model._read).off
    model.model.model.norm.register_forward_hook(lambda *args: None)
    with pytest.warns(UserWarning, match=r"without CUDA graphs: model\.norm has a hook"):
        CudaGraphs(model.model, model._read)
