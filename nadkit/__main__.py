"""`python -m nadkit` is the command `nadkit`."""

from nadkit.book.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
