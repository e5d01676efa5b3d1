"""An engine in this process, used from calls that block and beside SGLang's own calls.

    python tests/serving/local.py MODEL

Prints what was found as one line of JSON. A process of its own, since SGLang takes over the
event loops and signals of the one that it is started in.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any


def main(folder: str) -> None:
    """Start the engine and use it."""
    import sglang

    import mvspec as mv
    from mvspec.errors import Unsupported
    from mvspec.law.limits import Limits
    from mvspec.runtime import Options, Sampling, SGLangEngine, TorchEngine, Written

    served: Any = sglang.Engine(
        model_path=folder,
        device="cpu",
        attention_backend="torch_native",
        sampling_backend="pytorch",
        dtype="float32",
        disable_cuda_graph=True,
        mem_fraction_static=0.1,
        max_total_tokens=8192,
        max_running_requests=16,
        log_level="warning",
    )
    engine = SGLangEngine(served)
    reference = TorchEngine.load(folder, dtype="float32")
    ask = mv.document(mv.user("Well?"))
    options = [
        Options(Sampling(temperature=1.0, seed=seed), Limits(max_position=120)) for seed in range(4)
    ]
    found = engine.run_many([ask] * 4, options)
    wanted = reference.run_many([ask] * 4, options)
    plain = served.generate("Well", {"max_new_tokens": 4, "temperature": 0})
    for event in engine.stream(ask, Options(limits=Limits(max_tokens=3000))):
        if isinstance(event, Written):
            break
    after = engine.run(ask, options[0])
    try:
        asyncio.run(engine.run_async(ask, options[0]))
        elsewhere = ""
    except Unsupported as error:
        elsewhere = str(error)
    print(
        json.dumps(
            {
                "same": [a.trace.ids == b.trace.ids for a, b in zip(found, wanted, strict=True)],
                "threads": max(len(each.trace.threads) for each in found),
                "plain": plain["meta_info"]["completion_tokens"],
                "after": after.trace.ids == wanted[0].trace.ids,
                "elsewhere": elsewhere,
            }
        ),
        flush=True,
    )
    served.shutdown()


if __name__ == "__main__":
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    main(sys.argv[1])
