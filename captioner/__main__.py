"""`python -m captioner` and the `captioner` command."""

from captioner.cli import main

if __name__ == "__main__":
    main()
