"""`python -m sessionproxy` is the command `sessionproxy`."""

from .cli import main

if __name__ == "__main__":
    main()
