"""Repair: the edits that turn any text into canonical text of its form.

The rule, in order:

1. Text is never dropped where a place can hold it. Text between the parts of a block goes to the
   path or the conclusion before it, or to a path of its own that its label or its closing tag
   shows; lines of a goal become outlines. What no place can hold is text before the first
   `<Outline>` or `<Path>` of a block.
2. A tag that the open structure expects is believed.
3. A tag that it does not expect is believed where it stands like a tag (before a newline or
   another tag, or, if it closes, after one) and closing what is open explains it.
4. Any other tag is a word, or stray: the tag is dropped, its surroundings are kept.
5. What is missing is written in its shortest form.
6. Paths match outlines by label, in order; then as they come. A path without an outline gets an
   empty outline, an outline without a path an empty path.

Edits are made where the text first departs from the grammar, so a text whose edits all stand at
its end is a prefix of a well-formed one: it was cut.
"""
