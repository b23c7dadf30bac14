"""`python -m attncc` is the console script."""

from attncc.cli import main

if __name__ == "__main__":
    main()
