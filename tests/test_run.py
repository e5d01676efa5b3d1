"""The in-process engine on a tiny random model, held to one forward over the whole sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import mvspec as mv
from mvspec.errors import LimitExceeded, MvspecError, Unsupported, VerifyError
from mvspec.structure import sees

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mvspec.runtime import (  # noqa: E402
    Result,
    Sampling,
    TorchEngine,
    load_document,
    run,
    run_program,
)
from mvspec.runtime.hole import OpenHole  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
)


def make_tokenizer() -> Any:
    """Return a byte-level tokenizer: one token a byte, and two control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # One merge, so that tokens can hold more than one character.
    vocabulary = {c: i for i, c in enumerate(alphabet)} | {"ab": 256, ".Ċ": 257}
    backend = Tokenizer(models.BPE(vocabulary, [("a", "b"), (".", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|start|>", "<|end|>")])
    backend.add_tokens([AddedToken("<call>", special=False)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", chat_template=TEMPLATE
    )


def make_engine() -> TorchEngine:
    """Return a float64 Llama with random weights, large enough to prefer some tokens."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.4,
        eos_token_id=tokenizer.eos_token_id,
        # Eager attention takes its softmax in float32 whatever the model's type.
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config).to(torch.float64).eval()
    # And so do Llama's own norms, which turns a last bit of float64 into one of float32.
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "LlamaRMSNorm":
                norm = torch.nn.RMSNorm(48, eps=config.rms_norm_eps, dtype=torch.float64)
                setattr(module, name, norm)
    return TorchEngine(model, tokenizer)


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return make_engine()


Drawn = dict[tuple[str, int], Any]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Collect the logits that each token of a hole was chosen from."""
    seen: Drawn = {}
    choose = OpenHole.choose

    def record(hole: OpenHole, logits: Any) -> int | None:
        seen[hole.fill.hole.name, len(hole.ids)] = logits.clone()
        return choose(hole, logits)

    monkeypatch.setattr(OpenHole, "choose", record)
    return seen


def nested() -> mv.Document:
    inner = mv.parallel(
        mv.branch("left", "L", mv.gen("left", 5)),
        mv.branch("right", mv.gen("right", 3), " and", mv.gen("more", 4)),
        conclusion=["so", mv.gen("inner", 3)],
    )
    second = mv.parallel(mv.branch("x", mv.gen("x", 2)), mv.branch("y", "nothing to fill"))
    return mv.document(
        mv.system("Be brief."),
        mv.user("What now? <|end|> <call> <Path>"),
        mv.assistant(
            mv.think("Let me see.", mv.gen("thought", 6)),
            mv.parallel(
                mv.branch("one", mv.gen("one", 9)),
                mv.branch("two", "Two:", inner, "done", mv.gen("after", 4)),
                mv.branch("three", mv.gen("three", 1)),
                conclusion=["In all", mv.gen("all", 5)],
            ),
            "Then",
            second,
            mv.gen("end", 6),
        ),
    )


def whole_forward(engine: TorchEngine, result: Result) -> Any:
    """Return the logits of one forward over the trace, its dense mask made from the law."""
    trace = result.trace
    lowest = torch.finfo(torch.float64).min
    mask = torch.tensor(
        [
            [0.0 if k <= q and sees(trace[q].chain, trace[k].chain) else lowest for k in columns]
            for columns in [range(len(trace))]
            for q in columns
        ],
        dtype=torch.float64,
    )
    with torch.inference_mode():
        return engine.model(
            input_ids=torch.tensor([[t.id for t in trace]]),
            position_ids=torch.tensor([[t.position for t in trace]]),
            attention_mask=mask[None, None],
        ).logits[0]


def predictor(result: Result, index: int) -> int:
    """Return the index of the token before `index` in its thread."""
    thread = result.trace[index].thread
    return max(i for i in range(index) if result.trace[i].thread == thread)


def assert_same_logits(engine: TorchEngine, result: Result, drawn: Drawn) -> int:
    whole = whole_forward(engine, result)
    counts: dict[str, int] = {}
    compared = 0
    for index, token in enumerate(result.trace):
        if not token.hole or token.forced:
            continue
        number = counts.get(token.hole, 0)
        counts[token.hole] = number + 1
        own = drawn[token.hole, number]
        assert (own - whole[predictor(result, index)]).abs().max() < 1e-9
        compared += 1
    return compared


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_inference_equals_one_forward(
    engine: TorchEngine, temperature: float, drawn: Drawn
) -> None:
    result = engine.run(nested(), Sampling(temperature, seed=3))
    assert assert_same_logits(engine, result, drawn) > 20
    assert set(result.values) == {hole.name for hole in nested().holes}
    assert not result.document.holes


def test_positions_follow_the_law(engine: TorchEngine) -> None:
    trace = engine.run(nested(), Sampling(1.0, seed=1)).trace
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for token in trace:
        if token.thread in last and token.thread != 0:
            assert token.position > last[token.thread]
        first.setdefault(token.thread, token.position)
        last[token.thread] = token.position
    # Threads 1 to 3 are the outer block's paths, the next two those inside path two.
    assert first[1] == first[2] == first[3]
    root = [t.position for t in trace if t.thread == 0]
    fork = max(p for p in root if p < first[1])
    join = min(p for p in root if p >= first[1])
    assert fork + 1 == first[1]
    assert join == 1 + max(last[1], last[2], last[3])
    assert root == sorted(set(root))


def test_text_from_outside_holds_no_control_token(engine: TorchEngine) -> None:
    trace = engine.run(nested()).trace
    outside = {t.id for t in trace if t.author == "outside"}
    assert outside.isdisjoint(engine.tokenizer.added_tokens_decoder)
    text = engine.vocabulary.decode([t.id for t in trace if t.author == "outside"])
    assert text == "Be brief.What now? <|end|> <call> <Path>"


def test_siblings_do_not_interfere(engine: TorchEngine, drawn: Drawn) -> None:
    """Law 7: another text of the same length in one path changes no logit of the other."""
    logits = []
    for text in ("Oslo", "Rome"):
        drawn.clear()
        engine.run(
            mv.document(
                mv.user("Go."),
                mv.assistant(
                    mv.parallel(
                        # Of one length too, or the rows of a forward round otherwise.
                        mv.branch("a", text, mv.gen("a", 4, choices=["wxyz"])),
                        mv.branch("b", "City", mv.gen("b", 4)),
                        conclusion=mv.gen("c", 1),
                    )
                ),
            ),
        )
        logits.append(dict(drawn))
    one, two = logits
    assert (one["a", 0] - two["a", 0]).abs().max() > 1e-6
    assert (one["c", 0] - two["c", 0]).abs().max() > 1e-6
    steps = [key for key in one if key[0] == "b"]
    assert steps
    for key in steps:
        assert torch.equal(one[key], two[key])


def ask(*body: Any) -> mv.Document:
    return mv.document(mv.user("Well?"), mv.assistant(*body))


@pytest.mark.parametrize("seed", range(6))
def test_choices(engine: TorchEngine, seed: int) -> None:
    choices = ["yes", "yesterday", "no", "ab.\n"]
    result = engine.run(ask("Say ", mv.gen("it", choices=choices)), Sampling(5.0, seed))
    assert result["it"] in choices


def test_every_choice_can_come(engine: TorchEngine) -> None:
    document = ask("Say ", mv.gen("it", choices=["y", "yy", "n"]))
    found = {engine.run(document, Sampling(30.0, seed))["it"] for seed in range(40)}
    assert found == {"y", "yy", "n"}


class Script:
    """Choices of a model that says given tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: TorchEngine, **texts: str) -> None:
        ids = {name: engine.vocabulary.encode(text) for name, text in texts.items()}

        def choose(hole: OpenHole, logits: Any) -> int | None:
            del logits
            own = ids[hole.fill.hole.name]
            return own[len(hole.ids)] if len(hole.ids) < len(own) else None

        monkeypatch.setattr(OpenHole, "choose", choose)


@pytest.mark.parametrize(
    ("said", "stop", "value"),
    [
        ("one\ntwo", ["\n"], "one"),
        ("one\n\ntwo", ["\n\n"], "one"),  # the stop string spans tokens
        ("oneab", ["b"], "onea"),  # it begins inside one
        ("one.\n", ["\n"], "one."),
        ("one.\n", ["\n", "."], "one"),  # the earliest counts
        ("\n", ["\n"], ""),
        ("é\n", ["\n"], "é"),
    ],
)
def test_stop_strings(
    engine: TorchEngine,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    stop: list[str],
    value: str,
) -> None:
    Script(monkeypatch, engine, it=said, more="xyz")
    result = engine.run(ask("So: ", mv.gen("it", stop=stop), mv.gen("more", 3)))
    assert result.values == {"it": value, "more": "xyz"}
    written = [t for t in result.trace if t.hole == "it"]
    assert engine.vocabulary.decode([t.id for t in written]) == value
    assert [t.forced for t in written if t.forced] == [True] * (said == "oneab" or value == "one.")
    positions = [t.position for t in result.trace]
    assert positions == list(range(len(positions)))


@pytest.mark.parametrize("said", ["oneab", "one\n\n"])
def test_after_a_stop_string_the_logits_are_right(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch, drawn: Drawn, said: str
) -> None:
    """What a stop string took back is seen by nobody."""
    recorded = OpenHole.choose
    ids = engine.vocabulary.encode(said)

    def choose(hole: OpenHole, logits: Any) -> int | None:
        token = recorded(hole, logits)
        if hole.fill.hole.name == "it":
            return ids[len(hole.ids)]
        return token

    monkeypatch.setattr(OpenHole, "choose", choose)
    document = ask("So: ", mv.gen("it", stop=["b", "\n\n"]), mv.gen("more", 4))
    result = engine.run(document)
    assert assert_same_logits(engine, result, drawn) > 4


def test_a_hole_never_completes_a_tag(engine: TorchEngine) -> None:
    tag = engine.vocabulary.encode("<Path>")

    class Liking:
        """Logits that want the tag's next character."""

        def __call__(self, hole: OpenHole) -> int | None:
            logits = torch.zeros(len(engine.tokenizer), dtype=torch.float64)
            logits[tag[min(len(hole.ids), 5)]] = 9.0
            return hole.choose(logits)

    from mvspec.runtime.plan import Fill

    want = Liking()
    hole = OpenHole(Fill(mv.gen("x", 9)), "", engine.vocabulary, engine.ends, Sampling())
    for _ in range(5):
        token = want(hole)
        assert token is not None
        hole.ids.append(token)
    assert hole.text == "<Path"
    assert want(hole) != tag[5]
    before = OpenHole(Fill(mv.gen("x", 9)), "<Path", engine.vocabulary, engine.ends, Sampling())
    logits = torch.zeros(len(engine.tokenizer), dtype=torch.float64)
    logits[tag[5]] = 9.0
    assert before.choose(logits) != tag[5]
    after = OpenHole(Fill(mv.gen("x", 9), ">"), "<Pat", engine.vocabulary, engine.ends, Sampling())
    logits[tag[4]] = 19.0
    assert after.choose(logits) != tag[4]


def test_seeds(engine: TorchEngine) -> None:
    runs = [engine.run(nested(), Sampling(1.0, seed)).values for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    with pytest.raises(VerifyError, match="temperature"):
        Sampling(-1.0)


def test_a_document_without_holes(engine: TorchEngine) -> None:
    block = mv.parallel(mv.branch("a", "One."), mv.branch("b", "Two."), conclusion="Both.")
    result = engine.run(ask(block))
    assert result.values == {}
    assert result.document == ask(block)
    assert {t.thread for t in result.trace} == {0, 1, 2}
    assert 1 < result.parallelism < 2


def test_several_turns(engine: TorchEngine, drawn: Drawn) -> None:
    document = mv.document(
        mv.user("First?"),
        mv.assistant("A", mv.gen("a", 4)),
        mv.user("Second?"),
        mv.assistant(mv.parallel(mv.branch("x", mv.gen("x", 3)), mv.branch("y", mv.gen("y", 3)))),
    )
    result = engine.run(document)
    assert assert_same_logits(engine, result, drawn) >= 2
    assert result.parallelism > 0


def test_refusals(engine: TorchEngine) -> None:
    with pytest.raises(VerifyError, match=r"messages\[0\].*assistant"):
        engine.run(mv.document(mv.user("Hello")))
    with pytest.raises(VerifyError, match="assistant"):
        engine.run(mv.Document())
    with pytest.raises(Unsupported, match="'regex'"):
        engine.run(ask(mv.gen("x", regex="a+")))
    with pytest.raises(Unsupported, match="'json_schema'"):
        engine.run(ask(mv.gen("x", schema={"type": "object"})))
    with pytest.raises(LimitExceeded, match="max_tokens"):
        engine.run(ask(mv.gen("x", 2, choices=["far too long"])))
    with pytest.raises(VerifyError, match="tag"):
        engine.run(ask(mv.gen("x", choices=["<Path>"])))
    with pytest.raises(LimitExceeded, match="2048"):
        engine.run(ask(mv.gen("x", 5000)))
    # Paths run side by side, so each may use what the context leaves.
    engine.run(ask(mv.parallel(*(mv.branch("b", mv.gen(f"x{i}", 900, stop=".")) for i in "ab"))))


def test_no_template_and_no_text(engine: TorchEngine) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    plain = TorchEngine(engine.model, tokenizer)
    assert len(plain.run(mv.document(mv.assistant("So", mv.gen("x", 3)))).trace) <= 5
    with pytest.raises(VerifyError, match="first token"):
        plain.run(mv.document(mv.assistant(mv.gen("x"))))
    with pytest.raises(Unsupported, match="chat template"):
        plain.run(ask(mv.gen("x")))


def test_models_that_cannot_honour_the_mask() -> None:
    engine = make_engine()
    config = engine.model.config
    for name, value, what in [
        ("layer_types", ["sliding_attention"], "sliding_attention"),
        ("_attn_implementation", "flash_attention_2", "flash_attention_2"),
        ("rope_parameters", {"rope_type": "dynamic"}, "dynamic"),
        ("alibi", True, "ALiBi"),
    ]:
        before = getattr(config, name, None)
        setattr(config, name, value)
        with pytest.raises(Unsupported, match=what):
            TorchEngine(engine.model, engine.tokenizer)
        setattr(config, name, before)


PROGRAM = """\
import mvspec as mv
document = mv.document(mv.user("Q"), mv.assistant("A", mv.gen("x", 3), mv.gen("y", 2)))
"""


def test_programs(engine: TorchEngine, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    document = load_document(program)
    as_json = tmp_path / "document.json"
    as_json.write_text(document.to_json(), encoding="utf-8")
    assert load_document(as_json) == document
    result = run(program, engine)
    assert result.values == run(document, engine).values
    with pytest.raises(VerifyError, match="not both"):
        run(document, engine, model="somewhere")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "x = 1\n", "binds no `document`"),
        ("a.py", "from mvspec import document\n", "binds a function"),
        ("a.py", "\n1 / 0\n", r"a\.py:2: ZeroDivisionError"),
        ("a.py", "def\n", r"a\.py:1: SyntaxError"),
        ("a.py", "import sys\nsys.exit()\n", r"a\.py:2: SystemExit"),
        ("a.py", "import mvspec\n\nmvspec.parallel()\n", r"a\.py:3: .*at least one branch"),
        ("a.json", "{", r"a\.json: "),
        ("a.json", '{"messages": 3}', r"a\.json: messages"),
    ],
)
def test_bad_programs(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MvspecError, match=message):
        load_document(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MvspecError, match="no such file"):
        run(tmp_path / "none.py")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    with pytest.raises(MvspecError, match="cannot be loaded"):
        run(program, model=tmp_path / "no-model")


def test_results_are_printed(
    engine: TorchEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    monkeypatch.setattr(TorchEngine, "load", classmethod(lambda cls, model=None: engine))
    Script(monkeypatch, engine, x="[b]", y="")
    console = Console(record=True, width=80)
    run_program(program, console=console)
    text = console.export_text()
    assert "[b]" in text  # a value is no markup
    assert "critical path" in text


def test_a_plan_runs_like_its_document(engine: TorchEngine) -> None:
    from mvspec.compiler import plan_document
    from mvspec.syntax import UNTAGGED

    document = mv.document(
        mv.user("Which?"),
        mv.assistant(
            mv.parallel(
                mv.branch("a", "It is ", mv.gen("one", 5)),
                mv.branch("b", "It is ", mv.gen("two", 3)),
                conclusion=["So ", mv.gen("end", 4)],
            )
        ),
    )
    plan = plan_document(document, engine.tokenizer, syntax=UNTAGGED)
    assert run(plan, engine).values == run(document, engine).values
    with pytest.raises(Unsupported, match="runs untagged plans"):
        run(plan.model_copy(update={"form": "multiverse"}), engine)
    with pytest.raises(Unsupported, match="hold their document"):
        run(plan.model_copy(update={"document": None}), engine)
