"""`python -m whylens` is the command line."""

from whylens.cli import main

if __name__ == "__main__":
    main()
