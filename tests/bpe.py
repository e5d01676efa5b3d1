"""Small tokenizers, trained here on text written here, and some that have to be refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from mvspec.compiler import add_tags
from mvspec.law.tags import Tag

__all__ = [
    "CHATML",
    "CONTROL",
    "chat_tokenizer",
    "copy",
    "loose_tokenizer",
    "metaspace_tokenizer",
    "small_tokenizer",
    "tagged_tokenizer",
    "with_prefix_space",
]

# Words, numbers, and punctuation with the newlines after it: the rule under which a colon and a
# newline become one token.
SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Special tokens; `<tool_call>` is added too, and is not special."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXT = """Let me see. The sum is 5, so the product is 6.
Let's think in parallel:
1: Add.
2: Multiply.
1: a b c
2: a b
1.1: Check by hand.
1.2: Check by fingers:

- one of them
- another of them

Both agree: it is 5 & \\(x < y\\), and \\[a = b\\].
So 5 it is, and the answer is:
1:
2:
10.0:
1: \n2: \n\
Answer: 4 and 6 and 答案是五。
"""


def train(pre_tokenizer: pre_tokenizers.PreTokenizer, decoder: decoders.Decoder) -> Tokenizer:
    """A byte-level BPE of about 400 tokens, control tokens included, tags not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 8, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return tokenizer


def copy(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer of its own, to change."""
    made: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    return made


@cache
def untagged_tokenizer() -> Tokenizer:
    """The small tokenizer before the tags were added."""
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return train(pre_tokenizers.Sequence([split, bytes_]), decoders.ByteLevel())


@cache
def small_tokenizer() -> Tokenizer:
    """The small tokenizer, with tags."""
    tokenizer = copy(untagged_tokenizer())
    add_tags(tokenizer)
    return tokenizer


@cache
def loose_tokenizer() -> Tokenizer:
    """One that merges across words, numbers and lines: a header may be a single token."""
    tokenizer = train(
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    )
    add_tags(tokenizer)
    return tokenizer


def tagged_tokenizer(
    tags: Sequence[Tag] = tuple(Tag),
    *,
    special: bool = True,
    lstrip: bool = False,
    rstrip: bool = False,
    single_word: bool = False,
) -> Tokenizer:
    """The small tokenizer with these tags, added in this way."""
    tokenizer = copy(untagged_tokenizer())
    tokens = [
        AddedToken(
            tag.value,
            special=special,
            lstrip=lstrip,
            rstrip=rstrip,
            single_word=single_word,
            normalized=False,
        )
        for tag in tags
    ]
    if special:
        tokenizer.add_special_tokens(tokens)
    else:
        tokenizer.add_tokens(tokens)
    return tokenizer


def chat_tokenizer(
    template: str | None = CHATML, tokenizer: Tokenizer | None = None
) -> PreTrainedTokenizerFast:
    """A transformers tokenizer with a chat template."""
    load: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = load(
        tokenizer_object=copy(tokenizer or small_tokenizer()), eos_token="<|im_end|>"
    )
    made.chat_template = template
    return made


def metaspace_tokenizer() -> Tokenizer:
    """As SentencePiece has it: every text starts with a space."""
    tokenizer = train(pre_tokenizers.Metaspace(prepend_scheme="always"), decoders.Metaspace())
    add_tags(tokenizer)
    return tokenizer


def with_prefix_space() -> Tokenizer:
    """Byte-level, but the normalizer writes a space before every text."""
    tokenizer = copy(small_tokenizer())
    tokenizer.normalizer = normalizers.Prepend(" ")
    return tokenizer
