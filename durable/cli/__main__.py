"""``python -m durable.cli``: the command where no script of it is installed."""

from durable.cli.main import main

if __name__ == "__main__":
    main()
