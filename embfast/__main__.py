"""`python -m embfast` is the `embfast` program."""

from embfast.cli import main

if __name__ == "__main__":
    main()
