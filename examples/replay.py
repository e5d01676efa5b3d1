"""Replay: what a Multiverse model wrote, read again by another model at its own positions.

Run it with `mvspec run --trace replay.jsonl examples/replay.py`, then
`mvspec run --timeline replay.svg replay.jsonl`: no token is generated, all are read.
"""

import mvspec as mv

WRITTEN = """\
Both numbers can be found at the same time.
<Parallel>
<Goal>
<Outline>
1: The sum of 17 and 25
</Outline>
<Outline>
2: The product of 6 and 7
</Outline>
</Goal>
<Path>
1: 17 and 25 are 42.
</Path>
<Path>
2: 6 times 7 is 42.
</Path>
<Conclusion>
Both are 42.
</Conclusion>
</Parallel>
Answer: 42"""

document = mv.document(
    mv.user("What are 17 + 25 and 6 * 7?"), *mv.parse(WRITTEN, form="multiverse").messages
)
