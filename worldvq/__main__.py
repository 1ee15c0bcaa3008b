"""``python -m worldvq``."""

from worldvq.cli.main import main

if __name__ == "__main__":
    main()
