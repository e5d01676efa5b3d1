"""Laws 7, 8 and 9 on SmolLM2, in float32 and in float64: a real model's logits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mvspec.compiler import additive_mask  # noqa: E402
from mvspec.law.threads import sees  # noqa: E402
from mvspec.runtime import Options, TorchEngine, load_program  # noqa: E402

pytestmark = pytest.mark.skipif(
    not os.environ.get("MVSPEC_TEST_MODEL"),
    reason="needs the default model (93 MB once): set MVSPEC_TEST_MODEL=1",
)
PROGRAM = Path(__file__).parents[2] / "examples" / "compare.py"


@pytest.mark.parametrize(("dtype", "most"), [("float32", 3e-4), ("float64", 1e-9)])
def test_inference_is_one_training_forward(dtype: str, most: float) -> None:
    engine = TorchEngine.load(dtype=dtype, device="cpu", max_batched_tokens=50)
    result = engine.run(load_program(PROGRAM), Options(logits=True))
    layout = result.trace.layout
    model = engine.model.model
    with torch.inference_mode():
        whole = model(
            input_ids=torch.tensor(layout.input_ids[None], dtype=torch.int64),
            position_ids=torch.tensor(layout.position_ids[None], dtype=torch.int64),
            attention_mask=additive_mask(layout, dtype=model.dtype),
        ).logits[0]
    assert result.logits is not None
    rows = [(i, row) for i, row in enumerate(result.logits) if row is not None]
    assert len(rows) > 200
    found = max(float((row - whole[index]).abs().max()) for index, row in rows)
    print(f"{dtype}: {found:.1e} over {len(rows)} tokens")
    assert found < most
    # Siblings: another token in one path changes no logit of another, exactly.
    trace = result.trace
    changed = next(i for i, owner in enumerate(trace.thread_ids) if owner == 2)
    ids = list(trace.ids)
    ids[changed] += 1
    runs = [
        engine.run(each.plan, Options(logits=True)).logits
        for each in (trace, trace.model_copy(update={"ids": tuple(ids)}))
    ]
    assert runs[0] is not None
    assert runs[1] is not None
    for index, (a, b) in enumerate(zip(runs[0], runs[1], strict=True)):
        if not sees(trace.chain(trace.thread_ids[index]), trace.chain(2)) and a is not None:
            assert torch.equal(a, b)
