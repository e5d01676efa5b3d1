"""`python -m mvspec` is the command `mvspec`."""

import sys


def main() -> None:
    """Be the command `mvspec`; Ctrl-C while it is imported ends in a line too."""
    try:
        from mvspec.cli import main as command

        command()
    except KeyboardInterrupt:
        print("mvspec: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
