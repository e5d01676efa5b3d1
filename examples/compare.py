"""Compare six ways to get to work: six paths at once, and a conclusion that reads them all.

Run it with `mvspec run examples/compare.py`.
"""

import mvspec as mv

OPTIONS = ["Walking", "Cycling", "Driving a car", "Taking the bus", "Taking the train", "Running"]

document = mv.document(
    mv.user(
        "Name one advantage and one disadvantage of each way to get to work. "
        "Give each way one short sentence. Then say which way is best."
    ),
    mv.assistant(
        mv.parallel(
            *(
                mv.branch(option, mv.gen(f"option_{i}", max_tokens=40, stop="\n"))
                for i, option in enumerate(OPTIONS)
            ),
            conclusion=["In conclusion, the best way to get to work is", mv.gen("verdict", 40)],
        )
    ),
)
