"""Map over texts: one path a text, and a conclusion that has read them all.

Run it with `mvspec run --live examples/map_texts.py`. Put your own texts into REVIEWS.
"""

import mvspec as mv

REVIEWS = (
    "The rooms were clean and the staff was very friendly. We will come again.",
    "Loud street, cold water in the morning, and nobody at the desk.",
    "A fair price for the centre of the town. The breakfast could be better.",
    "The best hotel that we have stayed in. The view alone is worth it.",
)

document = mv.document(
    mv.user("Judge these hotel reviews.\n\n" + "\n\n".join(REVIEWS)),
    mv.assistant(
        mv.parallel(
            *(
                mv.branch(
                    f"Review {number}",
                    f'The review says: "{review}"\nThis review is ',
                    mv.gen(f"mood_{number}", choices=["positive", "negative", "mixed"]),
                    ", because ",
                    mv.gen(f"reason_{number}", 24, stop=[".", "\n"]),
                )
                for number, review in enumerate(REVIEWS, 1)
            ),
            conclusion=["In one sentence, guests say that ", mv.gen("all", 40, stop=[".", "\n"])],
        )
    ),
)
