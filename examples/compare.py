"""Compare six hobbies: six paths at once, and a conclusion that reads them all.

Run it with `mvspec run examples/compare.py`, or from Python:

    result = mvspec.run(document)
    print(result["verdict"])
"""

import mvspec as mv

HOBBIES = {
    "hiking": "Hiking",
    "chess": "Playing chess",
    "cooking": "Cooking",
    "swimming": "Swimming",
    "guitar": "Playing the guitar",
    "gardening": "Gardening",
}

document = mv.document(
    mv.user(
        "What is the main advantage of each of these hobbies? "
        "Then name the best one for a rainy day."
    ),
    mv.assistant(
        mv.parallel(
            *(
                mv.branch(
                    hobby,
                    # A small model keeps to its topic where the sentence names it.
                    f"The main advantage of {hobby.lower()} is",
                    mv.gen(name, max_tokens=32, stop=[".", "\n"]),
                )
                for name, hobby in HOBBIES.items()
            ),
            conclusion=[
                "The best hobby for a rainy day is",
                # Tokenizers join a space with the word after it, so the space is the choice's.
                mv.gen("verdict", choices=[f" {hobby.lower()}" for hobby in HOBBIES.values()]),
                ", because it",
                mv.gen("reason", max_tokens=32, stop=[".", "\n"]),
            ],
        )
    ),
)
