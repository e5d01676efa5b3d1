"""A chat template's own arguments and clock: they are named once, and hold wherever it goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from bpe import CHATML, chat_tokenizer

import mvspec
from mvspec.cli.options import template_arguments
from mvspec.compiler import add_tags, compile_document, compile_rows, plan_document
from mvspec.compiler.chat_template import TemplateSettings, adopt, asking, settings_of
from mvspec.compiler.compilation import CompilationOptions, compile_records
from mvspec.compiler.dataset import CompiledDataset
from mvspec.compiler.plan import Extend
from mvspec.compiler.vocabulary import fingerprint, load_tokenizer, save_tokenizer
from mvspec.data.records import Fields, InputError
from mvspec.data.sources import open_records
from mvspec.errors import MvspecError, Unsupported, VerifyError

sys.path.insert(0, str(Path(__file__).parents[1] / "laws"))
from zoo import TRL, template_tokenizer

ASKS = (
    "{%- if mode is defined %}Mode {{ mode }}. {% endif %}{{ greeting | default('Hi') }}\n" + CHATML
)
CLOCK = "It is {{ strftime_now('%d %b %Y %H:%M:%S') }}.\n" + CHATML
QUESTION = mvspec.document(mvspec.user("How?"))
ANSWERED = mvspec.document(mvspec.user("How?"), mvspec.assistant("So."))


def prompt(tokenizer: Any, **how: Any) -> str:
    plan = plan_document(QUESTION, tokenizer, **how)
    ids = [id for op in plan.ops if isinstance(op, Extend) for id in op.tokens]
    return str(tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        None,
        3,
        -2.5,
        1e300,
        "a",
        'q"\\#} %} {{ x }}\n',
        "é 答",
        [1, ["b"]],
        {"k": [None]},
    ],
)
def test_a_value_of_json_reaches_the_template_as_it_is(value: Any) -> None:
    shown = "{{ mode | tojson }}\n" + CHATML
    text = asking(chat_tokenizer(shown), {"mode": value}).apply_chat_template(
        [{"role": "user", "content": "How?"}], tokenize=False
    )
    assert json.loads(text.partition("\n<|im_start|>")[0]) == value
    assert settings_of(asking(chat_tokenizer(shown), {"mode": value})) == TemplateSettings(
        {"mode": value}
    )


@pytest.mark.skipif(not TRL, reason="needs trl")
def test_the_line_that_names_settings_changes_nothing_else() -> None:
    for template in [*list(TRL.values())[::9], "\n  {% if true %}\n a{% endif %}\n", "  {{ 1 }}"]:
        bare, named = template_tokenizer(template), template_tokenizer(template)
        adopt(named, TemplateSettings())
        chat = [{"role": "user", "content": "How?"}]
        assert named.apply_chat_template(chat, tokenize=False) == bare.apply_chat_template(
            chat, tokenize=False
        )
        assert fingerprint(named) == fingerprint(bare)


def test_compiled_and_asked_with_arguments() -> None:
    tokenizer = chat_tokenizer(ASKS)
    how: dict[str, Any] = {"chat_template_kwargs": {"mode": "fast"}}
    assert prompt(tokenizer, **how).startswith("Mode fast. Hi\n")
    assert prompt(tokenizer).startswith("Hi\n")
    assert tokenizer.chat_template == ASKS
    layout = compile_document(ANSWERED, tokenizer, **how)
    asked = prompt(tokenizer, **how)
    read = tokenizer.backend_tokenizer.decode(layout.input_ids.tolist(), skip_special_tokens=False)
    assert read == f"{asked}So.<|im_end|>\n"
    named = asking(tokenizer, {"mode": "fast"})
    assert compile_document(ANSWERED, named) == layout
    assert prompt(named, **how) == asked


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mod": 1}, "knows no argument 'mod': it takes greeting, mode"),
        ({"messages": []}, "knows no argument 'messages'"),
        ({"message": 1}, "knows no argument 'message'"),
        ({"mode": {1, 2}}, "argument mode is no value of JSON"),
        ({"mode": float("nan")}, "argument mode is no value of JSON"),
        ({"mode": (1, 2)}, "argument mode is no value of JSON"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        plan_document(QUESTION, chat_tokenizer(ASKS), chat_template_kwargs=arguments)
    named = asking(chat_tokenizer(ASKS), {"mode": 1})
    with pytest.raises(Unsupported, match="made with mode=1: give those or none"):
        asking(named, {"mode": 2})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["mode"], "expected NAME=JSON"),
        (["=1"], "expected NAME=JSON"),
        (["a-b=1"], "expected NAME=JSON"),
        (["mode=False"], "'False' is not JSON"),
        (["mode="], "'' is not JSON"),
        (["mode=1", "mode=1"], "mode is given twice"),
    ],
)
def test_options_that_are_no_arguments_are_refused(given: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        template_arguments(given)


def compiled(folder: Path, template: str, **how: Any) -> Path:
    tokenizer = chat_tokenizer(template)
    add_tags(tokenizer)
    save_tokenizer(tokenizer, folder / "model")
    rows = folder / "rows.jsonl"
    rows.write_text('{"question": "How?", "output": "So."}\n', encoding="utf-8")
    records = open_records([str(rows)], Fields(field="output", prompt_field="question"))
    compile_records(
        records, str(folder / "model"), folder / "set", CompilationOptions(tags=True), **how
    )
    return folder / "set"


def test_a_set_names_what_it_was_rendered_with(tmp_path: Path) -> None:
    folder = compiled(tmp_path, ASKS, chat_template_kwargs={"mode": "fast"})
    found = CompiledDataset(folder).template
    assert found == TemplateSettings({"mode": "fast"})
    assert settings_of(load_tokenizer(str(folder / "tokenizer"))) == found
    CompiledDataset(folder, load_tokenizer(str(tmp_path / "model")))
    other = asking(load_tokenizer(str(tmp_path / "model")), {"mode": "slow"})
    with pytest.raises(VerifyError, match='with mode="fast", and'):
        CompiledDataset(folder, other)
    with pytest.raises(InputError, match="template"):
        compiled(tmp_path, ASKS, chat_template_kwargs={"mode": "slow"})
    with pytest.raises(InputError, match="knows no argument 'mod'"):
        compiled(tmp_path, ASKS, chat_template_kwargs={"mod": 1})


def test_a_clock_stops_when_a_set_is_begun(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("mvspec.compiler.chat_template._now", lambda: "2026-05-01T09:00:00")
    folder = compiled(tmp_path, CLOCK)
    first = CompiledDataset(folder).template
    assert first == TemplateSettings({}, "2026-05-01T09:00:00")
    monkeypatch.setattr("mvspec.compiler.chat_template._now", lambda: "2027-06-02T10:00:00")
    assert CompiledDataset(compiled(tmp_path, CLOCK)).template == first  # taken up, not another
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    assert prompt(tokenizer).startswith("It is 01 May 2026 09:00:00.\n")
    assert prompt(load_tokenizer(str(tmp_path / "model"))).startswith("It is 02 Jun 2027")
    worked_out = "{% set f = '%d' %}{{ strftime_now(f) }}\n" + CHATML
    with pytest.raises(InputError, match="a format that it works out"):
        compiled(tmp_path / "other", worked_out)


def test_a_conversation_that_is_several_rows_says_so() -> None:
    rewriting = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    document = mvspec.document(*ANSWERED.messages, mvspec.user("And?"), mvspec.assistant("Yes."))
    tokenizer = chat_tokenizer(rewriting)
    with pytest.raises(
        Unsupported, match=r"is 2 rows and not one \('.*' and '.*'\): use compile_r"
    ):
        compile_document(document, tokenizer)
    rows = compile_rows(document, tokenizer)
    texts = [tokenizer.backend_tokenizer.decode(
        row.layout.input_ids[row.layout.loss_mask].tolist(), skip_special_tokens=False
    ) for row in rows]  # fmt: skip
    assert texts == ["So.<|im_end|>", "Yes.<|im_end|>"]


def test_a_text_alone_ends(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"output": "So."}\n', encoding="utf-8")
    for name, template in (("with", CHATML), ("without", None)):
        tokenizer = chat_tokenizer(template)
        save_tokenizer(tokenizer, tmp_path / name)
        records = open_records([str(rows)], Fields(field="output"))
        result = compile_records(
            records, str(tmp_path / name), tmp_path / f"{name}-set", CompilationOptions()
        )
        assert result.ended
        layout = CompiledDataset(tmp_path / f"{name}-set")[0]
        learned = layout.input_ids[layout.loss_mask].tolist()
        assert learned[-1] == tokenizer.eos_token_id
    bare = compile_records(
        open_records([str(rows)], Fields(field="output")),
        str(tmp_path / "without" / "tokenizer.json"), tmp_path / "bare", CompilationOptions(),
    )  # fmt: skip
    assert not bare.ended


def test_engines_ask_with_their_arguments() -> None:
    from tiny import tiny_engine, tiny_model

    from mvspec.runtime import TorchEngine
    from mvspec.runtime.program import engine_of

    tokenizer = chat_tokenizer(ASKS)
    model = tiny_model("Llama", len(tokenizer))
    engine = TorchEngine(model, tokenizer, chat_template_kwargs={"mode": "fast"})
    asked = compile_document(
        ANSWERED, tokenizer, chat_template_kwargs={"mode": "fast"}
    ).input_ids.tolist()
    ids = [id for op in engine.plan(QUESTION).ops if isinstance(op, Extend) for id in op.tokens]
    assert asked[: len(ids)] == ids
    assert tokenizer.eos_token_id in engine.lexicon.ends
    with pytest.raises(MvspecError, match="knows no argument"):
        TorchEngine(model, tokenizer, chat_template_kwargs={"mod": "fast"})
    with pytest.raises(MvspecError, match="give those or none"):
        engine_of(engine, chat_template_kwargs={"mode": "slow"})
    with pytest.raises(MvspecError, match="when it is made"):
        engine_of(tiny_engine(tokenizer=tokenizer), chat_template_kwargs={"mode": "slow"})


def test_holes_of_an_earlier_turn_are_asked_as_alone_or_refused() -> None:
    """A template that writes a thought before the last answer alone, as Qwen3's."""
    tokenizer = chat_tokenizer()
    turn = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    asked = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}THOUGHT{% endif %}"
    whole = "{% for m in messages %}" + turn + "{% endfor %}" + asked
    two = mvspec.document(
        mvspec.user("One?"), mvspec.assistant("So ", mvspec.gen("a", 3)),
        mvspec.user("Two?"), mvspec.assistant("So ", mvspec.gen("b", 3)),
    )  # fmt: skip
    last = mvspec.Document(messages=(two.messages[0], mvspec.assistant("So"), *two.messages[2:]))
    tokenizer.chat_template = whole.replace("THOUGHT", "")
    assert len(plan_document(two, tokenizer).holes) == 2
    tokenizer.chat_template = whole.replace("THOUGHT", "(no thought)")
    assert len(plan_document(last, tokenizer).holes) == 1
    with pytest.raises(Unsupported, match=r"messages\[1\] has holes"):
        plan_document(two, tokenizer)
