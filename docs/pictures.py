"""Draws the pictures of law.md into docs/law/: `python docs/pictures.py`."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import mvspec
from mvspec.compiler import Layout, add_tags
from mvspec.compiler.stages import Stages, compile_stages
from mvspec.view.drawing import png_uri
from mvspec.view.layout_page import hexadecimal, layout_drawing
from mvspec.view.mask_image import draw

FOLDER = Path(__file__).parent / "law"

EXAMPLE = """Let me see.
<Parallel>
<Goal>
<Outline>
1: Add.
</Outline>
<Outline>
2: Multiply.
</Outline>
</Goal>
<Path>
1: 17 + 25 is 17 + 20 + 5, so 42.
</Path>
<Path>
2: 6 * 7 is 42.
</Path>
<Conclusion>
Both are 42.
</Conclusion>
</Parallel>
They are equal."""

NESTED = """<Parallel>
<Goal>
<Outline>
1: Small.
</Outline>
<Outline>
2: Large.
</Outline>
</Goal>
<Path>
1: It is 3.
</Path>
<Path>
2: Two ways.
<Parallel>
<Goal>
<Outline>
2.1: By hand.
</Outline>
<Outline>
2.2: By rule.
</Outline>
</Goal>
<Path>
2.1: 4 and 4 and 4 is 12.
</Path>
<Path>
2.2: 3 * 4 is 12.
</Path>
<Conclusion>
It is 12.
</Conclusion>
</Parallel>
</Path>
<Conclusion>
3 and 12.
</Conclusion>
</Parallel>
So 15."""

LOWERINGS = {
    "multiverse": "the law",
    "sequential": "plain causal text",
    "shared(4)": "paths meet every 4 tokens",
    "tree": "what a stock engine sees",
    "official": "the published training tensors",
    "autoregressive": "no tags, goals, conclusions",
}


def words_tokenizer(text: str) -> Tokenizer:
    """Return a tokenizer for which each word of a text, with the space before it, is a token."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?\d+|\n| ?[^\sA-Za-z\d]"), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1_000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([text] * 4, trainer)
    add_tags(tokenizer)
    return tokenizer


def stages_of(text: str, lowering: str = "multiverse") -> tuple[Stages, Tokenizer]:
    """Compile one of the texts above."""
    tokenizer = words_tokenizer(EXAMPLE + NESTED)
    return compile_stages(mvspec.parse(text).messages[0], tokenizer, lowering), tokenizer


def ladder(text: str) -> str:
    """Draw threads side by side, a row for each position; forced tokens are hollow."""
    stages, tokenizer = stages_of(text)
    layout, threads = stages.layout, stages.threads()
    lanes = sorted({thread for thread in threads if thread})
    width, row, left, top = 168, 18, 46, 30
    middle = left + (len(lanes) * width - width) / 2 if lanes else left
    x = {thread: left + number * width for number, thread in enumerate(lanes)} | {"": middle}
    colours = colours_of(layout)
    rows = int(layout.position_ids.max()) + 1
    body = [
        f'<text x="{left - 10}" y="{top + position * row + 13}" text-anchor="end" '
        f'fill="#94a3b8" font-size="11">{position}</text>'
        for position in range(rows)
    ]
    body += [
        f'<text x="{x[lane] + 4}" y="{top - 10}" fill="#475569">path {escape(lane)}</text>'
        for lane in lanes
    ]
    for index, thread in enumerate(threads):
        y = top + int(layout.position_ids[index]) * row
        word = tokenizer.decode([int(layout.input_ids[index])], skip_special_tokens=False)
        free = bool(stages.tokens.free[index])
        fill = colours[index] if free else "#ffffff"
        ink = "#ffffff" if free else "#334155"
        body.append(
            f'<rect x="{x[thread]}" y="{y}" width="{width - 12}" height="{row - 3}" rx="3" '
            f'fill="{fill}" stroke="{colours[index]}"/>'
            f'<text x="{x[thread] + 8}" y="{y + 12}" fill="{ink}" xml:space="preserve">'
            f"{escape(word.replace(chr(10), '⏎'))}</text>"
        )
    size = left + max(1, len(lanes)) * width, top + rows * row + 8
    return picture("Position of every token, threads side by side", size, body)


def bars(text: str) -> str:
    """Draw threads one below the other, to scale of positions."""
    stages, _ = stages_of(text)
    layout, threads = stages.layout, stages.threads()
    lanes = sorted(set(threads))
    left, top, row = 76, 18, 46
    scale = 760 / (int(layout.position_ids.max()) + 1)
    colours = colours_of(layout)
    body = [
        f'<text x="{left - 12}" y="{top + number * row + 20}" text-anchor="end" fill="#475569">'
        f"{f'path {lane}' if lane else 'root'}</text>"
        for number, lane in enumerate(lanes)
    ]
    starts = [0, *(i for i in range(1, len(threads)) if threads[i] != threads[i - 1])]
    for start, end in zip(starts, [*starts[1:], len(threads)], strict=True):
        first, last = (int(layout.position_ids[at]) for at in (start, end - 1))
        x, y = left + first * scale, top + lanes.index(threads[start]) * row
        width = (last - first + 1) * scale
        body.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="28" rx="4" '
            f'fill="{colours[start]}"/>'
            f'<text x="{x:.1f}" y="{y + 39}" fill="#475569" font-size="10">{first}</text>'
            f'<text x="{x + width:.1f}" y="{y + 39}" text-anchor="end" fill="#475569" '
            f'font-size="10">{last}</text>'
        )
    return picture("Threads over positions", (left + 784, top + len(lanes) * row + 10), body)


def colours_of(layout: Layout) -> list[str]:
    """Return the colour of each token's path."""
    found = draw(layout).stretches
    colours: list[str] = []
    for start, end, colour in zip(
        found.starts[:-1].tolist(), found.starts[1:].tolist(), found.colours, strict=True
    ):
        colours += [hexadecimal(colour)] * (end - start)
    return colours


def mask(text: str) -> str:
    """Draw who sees whom, the positions and the loss, as `mvspec show --mask` does."""
    layout = stages_of(text)[0].layout
    return layout_drawing(layout, draw(layout)).svg()


def masks() -> str:
    """Draw the mask of one document under each lowering."""
    side, gap, top = 200, 44, 46
    body = []
    for number, (name, what) in enumerate(LOWERINGS.items()):
        layout = stages_of(EXAMPLE, name)[0].layout
        x, y = 24 + number % 3 * (side + gap), top + number // 3 * (side + top + 22)
        body.append(
            f'<text x="{x}" y="{y - 22}" font-weight="600" fill="#0f172a">{name}</text>'
            f'<text x="{x}" y="{y - 7}" fill="#475569" font-size="11">{what}; '
            f"{len(layout)} tokens</text>"
            f'<image x="{x}" y="{y}" width="{side}" height="{side}" '
            f'href="{png_uri(draw(layout).pixels)}" preserveAspectRatio="none" '
            f'style="image-rendering:pixelated"/>'
            f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="none" stroke="#94a3b8"/>'
        )
    return picture("One document under each lowering", (3 * (side + gap) + 4, 570), body)


def picture(title: str, size: tuple[float, float], body: list[str]) -> str:
    """Return an SVG file: a white sheet, which the site turns dark with its pages."""
    width, height = (int(part) for part in size)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" font-size="12" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">\n"
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def pictures() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each picture."""
    yield "ladder.svg", ladder(EXAMPLE)
    yield "nested.svg", bars(NESTED)
    yield "mask.svg", mask(EXAMPLE)
    yield "masks.svg", masks()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pictures():
        (FOLDER / name).write_text(text, "utf-8")
        print(FOLDER / name)
