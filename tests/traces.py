"""Traces with one defect each, the repairs they need, and the text that recovery makes of them.

Every text here was written for these tests. Names that begin with a letter and a number follow
the list of defects that was made over real outputs (A0 to E2).
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CANONICAL", "TRACES", "Trace"]

CANONICAL = """<Think>
Let me see.
Let's think in parallel.
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
1: The sum is 5.
Let's think in parallel.
<Parallel>
<Goal>
<Outline>
1.1: Check by hand.
</Outline>
<Outline>
1.2: Check by fingers.
</Outline>
</Goal>
<Path>
1.1: It is 5.
</Path>
<Path>
1.2: Also 5.
</Path>
<Conclusion>
Both agree.
</Conclusion>
</Parallel>
So 5 it is.
</Path>
<Path>
2: The product is 6.
</Path>
<Conclusion>
The sum is 5 and the product 6.
</Conclusion>
</Parallel>
Done.
</Think>

Answer: 5 and 6"""


class Trace(NamedTuple):
    """A text, the codes of its diagnostics in order, and the text that they repair it to."""

    name: str
    text: str
    codes: tuple[str, ...]
    repaired: str


def change(name: str, codes: str, *pairs: tuple[str, str, str]) -> Trace:
    """A defect of the canonical trace: each (canonical, as found, repaired), once each."""
    text = repaired = CANONICAL
    for canonical, found, mended in pairs:
        if CANONICAL.count(canonical) != 1:
            raise ValueError(f"{canonical!r} is not once in the trace")
        text = text.replace(canonical, found)
        repaired = repaired.replace(canonical, mended)
    return Trace(name, text, tuple(codes.split()), repaired)


def same(name: str, codes: str, canonical: str, found: str) -> Trace:
    """A defect whose repair is the canonical trace again."""
    return change(name, codes, (canonical, found, canonical))


def cut(name: str, end: str, missing: str) -> Trace:
    """The canonical trace up to and including `end`, closed by `missing`."""
    head = CANONICAL[: CANONICAL.index(end) + len(end)]
    return Trace(name, head, ("cut",), head + missing)


JOIN = "<Conclusion>\n\n</Conclusion>\n</Parallel>\n"
EMPTY_2 = "<Path>\n2: \n</Path>\n"
CLOSE = "</Think>\n\n"
DOUBLED = """<Think>
One.
</Think>

Answer: 1
</Think>

Answer: 1"""

TRACES: tuple[Trace, ...] = (
    # As in real outputs
    Trace("A0 answer cut", CANONICAL[:-4], (), CANONICAL[:-4]),
    cut("B1 cut in sequential text", "Let me s", f"\n{CLOSE}"),
    cut("B1 cut after a line", "Let me see.\n", CLOSE),
    cut("B2 cut in an outline", "2: Mult", f"\n</Outline>\n</Goal>\n<Path>\n1: \n</Path>\n"
        f"{EMPTY_2}{JOIN}{CLOSE}"),
    cut("B2 cut after <Outline>", "</Outline>\n<Outline>", "\n2: \n</Outline>\n</Goal>\n"
        f"<Path>\n1: \n</Path>\n{EMPTY_2}{JOIN}{CLOSE}"),
    cut("B4 cut inside a tag", "2: Multiply.\n</Out", "line>\n</Goal>\n<Path>\n1: \n</Path>\n"
        f"{EMPTY_2}{JOIN}{CLOSE}"),
    cut("C1 path cut", "1: The s", f"\n</Path>\n{EMPTY_2}{JOIN}{CLOSE}"),
    same("C1 path not closed", "missing-closing", "1.1: It is 5.\n</Path>\n", "1.1: It is 5.\n"),
    same("C1b <Conclusion> glued to cut text", "missing-closing",
         "Also 5.\n</Path>\n<Conclusion>", "Also 5.<Conclusion>"),
    same("C1b <Path> glued to cut text", "missing-closing",
         "So 5 it is.\n</Path>\n<Path>", "So 5 it is.<Path>"),
    Trace("C1c one word of a conclusion",
          "<Think>\n<Parallel>\n<Goal>\n<Outline>\n1: a\n</Outline>\n</Goal>\n<Path>\n1: cut"
          "<Conclusion>\nThe",
          ("missing-closing", "missing-closing"),
          "<Think>\n<Parallel>\n<Goal>\n<Outline>\n1: a\n</Outline>\n</Goal>\n<Path>\n1: cut\n"
          f"</Path>\n<Conclusion>\nThe\n</Conclusion>\n</Parallel>\n{CLOSE}"),
    change("C2 </Think> inside a conclusion", "missing-closing",
           ("product 6.\n</Conclusion>\n</Parallel>\nDone.\n", "product 6.\n",
            "product 6.\n</Conclusion>\n</Parallel>\n")),
    change("C2 </Think> inside a path", "stray-tag",
           ("1.1: It is 5.\n", "1.1: It is 5.\n</Think>\n\nAnswer: 5\n",
            "1.1: It is 5.\n\nAnswer: 5\n")),
    change("C3 a tag as a word", "tag-as-word",
           ("It is 5.", "It is **<Path> 5**.", "It is ** 5**.")),
    change("C3 a closing tag as a word", "tag-as-word",
           ("It is 5.", "It is a `</Path>` there.", "It is a `` there.")),
    same("C4 doubled <Conclusion>", "stray-tag", "<Conclusion>\nBoth",
         "<Conclusion>\n<Conclusion>\nBoth"),
    change("C4 <Conclusion> in no block", "stray-tag",
           ("Done.\n", "Done.\n<Conclusion>\nSo.\n", "Done.\nSo.\n")),
    Trace("C5 doubled answer", DOUBLED, ("stray-tag",),
          "<Think>\nOne.\n</Think>\n\nAnswer: 1\n\nAnswer: 1"),
    change("C5 </Path> in no path", "stray-tag",
           ("Let me see.\n", "Let me see.\n</Path>\nHm.\n", "Let me see.\nHm.\n")),
    change("C7 <Conclusion> not closed before <Path>", "missing-closing missing-closing",
           ("Also 5.\n</Path>\n<Conclusion>\nBoth agree.\n</Conclusion>\n</Parallel>\n"
            "So 5 it is.\n</Path>\n",
            "Also 5.<Conclusion>\n",
            f"Also 5.\n</Path>\n{JOIN}</Path>\n")),
    same("C7 <Parallel> not closed", "missing-closing",
         "</Parallel>\nSo 5 it is.\n", "So 5 it is.\n"),
    Trace("D3 never forked",
          "<Think>\n<Parallel>\n<Goal>\n<Outline>\n1: a\n</Outline>\n</Goal>\n</Parallel>\n</Think>"
          "\n\nA",
          ("missing-path",),
          "<Think>\n<Parallel>\n<Goal>\n<Outline>\n1: a\n</Outline>\n</Goal>\n"
          f"<Path>\n1: \n</Path>\n{JOIN}{CLOSE}A"),
    change("D5 a path twice", "missing-outline wrong-label",
           ("1.1: Check by hand.\n</Outline>\n", "1.1: Check by hand.\n</Outline>\n",
            "1.1: Check by hand.\n</Outline>\n<Outline>\n1.3: \n</Outline>\n"),
           ("1.1: It is 5.\n</Path>\n",
            "1.1: It is 5.\n</Path>\n<Path>\n1.1: Still 5.\n</Path>\n",
            "1.1: It is 5.\n</Path>\n<Path>\n1.3: Still 5.\n</Path>\n")),
    Trace("D6 nested numbers start over",
          CANONICAL.replace("1.1:", "1:").replace("1.2:", "2:"), (),
          CANONICAL.replace("1.1:", "1:").replace("1.2:", "2:")),
    Trace("E1 trigger in line", CANONICAL.replace("see.\nLet's", "see. Let's"), (),
          CANONICAL.replace("see.\nLet's", "see. Let's")),
    Trace("E2 other trigger", CANONICAL.replace("5.\nLet's", "5.\nSide by side"), (),
          CANONICAL.replace("5.\nLet's", "5.\nSide by side")),
    # White space
    same("two newlines between tags", "separator", "Multiply.\n</Outline>\n</Goal>",
         "Multiply.\n</Outline>\n\n</Goal>"),
    same("a space between tags", "separator", "<Parallel>\n<Goal>\n<Outline>\n1: Add",
         "<Parallel> <Goal>\n<Outline>\n1: Add"),
    same("text glued after a tag", "separator", "<Conclusion>\nBoth", "<Conclusion>Both"),
    same("text glued before a tag", "missing-newline", "Both agree.\n", "Both agree."),
    same("an indented tag", "separator", "Done.\n", "Done.\n  "),
    same("no space after a label", "separator", "1: The sum", "1:The sum"),
    same("a space before a colon", "separator", "1: The sum", "1 : The sum"),
    same("an outline of two lines", "outline-line", "Check by hand.", "Check\nby hand."),
    same("a blank line after an outline", "separator", "2: Multiply.\n", "2: Multiply.\n\n"),
    same("one newline after </Think>", "separator", "</Think>\n\n", "</Think>\n"),
    same("answer glued to </Think>", "separator", "</Think>\n\n", "</Think>"),
    same("space before <Think>", "separator", "<Think>\nLet", " \n<Think>\nLet"),
    same("CRLF between tags", "separator", "</Goal>\n<Path>\n1.1", "</Goal>\r\n<Path>\n1.1"),
    # Labels and numbers
    same("a missing label", "missing-label", "2: The product", "The product"),
    same("a missing outline label", "missing-label", "2: Multiply", "Multiply"),
    same("a skipped number", "wrong-label", "2: The product", "3: The product"),
    Trace("paths in the other order",
          "<Parallel>\n<Goal>\n<Outline>\n1: a\n</Outline>\n<Outline>\n2: b\n</Outline>\n</Goal>\n"
          f"<Path>\n2: B\n</Path>\n<Path>\n1: A\n</Path>\n{JOIN}",
          ("outline-order", "outline-order"),
          "<Parallel>\n<Goal>\n<Outline>\n2: b\n</Outline>\n<Outline>\n1: a\n</Outline>\n</Goal>\n"
          f"<Path>\n2: B\n</Path>\n<Path>\n1: A\n</Path>\n{JOIN}"),
    change("an outline twice", "wrong-label missing-path",
           ("</Outline>\n</Goal>\n<Path>\n1.1",
            "</Outline>\n<Outline>\n1.2: Again.\n</Outline>\n</Goal>\n<Path>\n1.1",
            "</Outline>\n<Outline>\n1.3: Again.\n</Outline>\n</Goal>\n<Path>\n1.1"),
           ("Also 5.\n</Path>\n", "Also 5.\n</Path>\n",
            "Also 5.\n</Path>\n<Path>\n1.3: \n</Path>\n")),
    change("a path without an outline", "missing-outline",
           ("<Outline>\n2: Multiply.\n</Outline>\n", "", "<Outline>\n2: \n</Outline>\n")),
    change("an outline without a path", "missing-path",
           ("<Path>\n2: The product is 6.\n</Path>\n", "", "<Path>\n2: \n</Path>\n")),
    # Text between tags
    change("text between paths", "stray-tag missing-closing",
           ("<Path>\n2: The product", "And now:\n<Path>\n2: The product",
            "<Path>\n2: The product"),
           ("So 5 it is.\n", "So 5 it is.\n", "So 5 it is.\nAnd now:\n")),
    change("text after a conclusion", "stray-tag missing-closing",
           ("product 6.\n</Conclusion>\n", "product 6.\n</Conclusion>\nIndeed.\n",
            "product 6.\nIndeed.\n</Conclusion>\n")),
    change("text before an outline", "text-outside",
           ("<Goal>\n<Outline>\n1.1", "<Goal>\nPlan\n<Outline>\n1.1", "<Goal>\n<Outline>\n1.1")),
    change("text before the first path", "text-outside",
           ("</Goal>\n<Path>\n1.1", "</Goal>\nGo\n<Path>\n1.1", "</Goal>\n<Path>\n1.1")),
    change("text before a goal", "stray-tag missing-opening",
           ("<Parallel>\n<Goal>\n<Outline>\n1.1", "<Parallel>\nPlan\n<Goal>\n<Outline>\n1.1",
            "Plan\n<Parallel>\n<Goal>\n<Outline>\n1.1")),
    same("a goal of bare lines", "missing-opening missing-closing missing-closing",
         "<Outline>\n1.1: Check by hand.\n</Outline>\n"
         "<Outline>\n1.2: Check by fingers.\n</Outline>",
         "1.1: Check by hand.\n1.2: Check by fingers."),
    # Tags in code and LaTeX
    change("tags in code", "tag-as-word tag-as-word",
           ("Done.\n", "Done: `x = \"<Goal>a</Goal>\"`.\n", "Done: `x = \"a\"`.\n")),
    change("a tag in LaTeX", "tag-as-word",
           ("Done.\n", "Done: \\text{<Conclusion> } \\\\\n", "Done: \\text{ } \\\\\n")),
    Trace("near-tags are text", CANONICAL.replace("Done.", "a<b <Pathx> </ Path> <path> </Goal"),
          (), CANONICAL.replace("Done.", "a<b <Pathx> </ Path> <path> </Goal")),
    # Think
    change("<Think> comes later", "missing-opening stray-tag",
           ("<Think>\nLet me", "Hello.\n<Think>\nLet me", "<Think>\nHello.\nLet me")),
    same("no <Think>", "missing-opening", "<Think>\n", ""),
    change("a second <Think>", "stray-tag",
           ("Answer: 5", "<Think>\nAnswer: 5", "Answer: 5")),
)  # fmt: skip
