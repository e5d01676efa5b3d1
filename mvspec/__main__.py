"""`python -m mvspec` is the command `mvspec`."""

from mvspec.cli import app

if __name__ == "__main__":
    app(prog_name="mvspec")
