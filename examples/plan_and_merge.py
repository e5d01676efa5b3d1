"""Plan and merge with nesting: three days at once, and within one of them two halves at once.

Run it with `mvspec run --live --timeline trip.svg examples/plan_and_merge.py`.
"""

import mvspec as mv


def sight(name: str, place: str) -> list[mv.Gen | str]:
    """Return the body of a path about one place."""
    return [f"In {place}, the best thing to do is ", mv.gen(name, 24, stop=[".", "\n"])]


document = mv.document(
    mv.user("Plan three days in Italy: Rome, Florence and Venice."),
    mv.assistant(
        mv.parallel(
            mv.branch(
                "Rome",
                mv.parallel(
                    mv.branch("The morning", *sight("rome_morning", "Rome in the morning")),
                    mv.branch("The evening", *sight("rome_evening", "Rome in the evening")),
                    conclusion=["So the day in Rome is ", mv.gen("rome", 16, stop=[".", "\n"])],
                ),
            ),
            mv.branch("Florence", *sight("florence", "Florence")),
            mv.branch("Venice", *sight("venice", "Venice")),
            conclusion=[
                "The best of the three days is the one in ",
                mv.gen("best", 8, stop=[".", ","]),
            ],
        )
    ),
)
