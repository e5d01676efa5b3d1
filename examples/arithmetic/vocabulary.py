"""Write the tokenizer of the arithmetic task: a token for each character and each of its words.

python examples/arithmetic/vocabulary.py FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mvspec.compiler import add_tags
from mvspec.runtime.tasks.problem import PARALLEL, STEPWISE

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Words with the space before them, a comma with the one after it, and else characters: digits
# stand alone, so that columns are seen, and so does the colon that ends a forced header, so that
# all lowerings have the same tokens.
PIECES = r" ?\p{L}+|[,;] |."
WORDS = f"user, system, assistant: What is; {STEPWISE} {PARALLEL}\nAnswer: "


def build() -> Any:
    """Return the tokenizer, with tags and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # any text is some tokens
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([WORDS] * 2, trainer)
    control = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in control])
    add_tags(tokenizer)
    load: Any = PreTrainedTokenizerFast
    made = load(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.chat_template = CHATML
    return made


def main() -> None:
    """Write it to a folder."""
    parser = argparse.ArgumentParser(description="Write the tokenizer of the arithmetic task.")
    parser.add_argument("folder", type=Path)
    build().save_pretrained(parser.parse_args().folder)


if __name__ == "__main__":
    main()
