"""`python -m mvspec` is the command `mvspec`."""

from mvspec.cli import main

if __name__ == "__main__":
    main()
