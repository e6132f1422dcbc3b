"""`python -m mla_cli` is `mla`."""

from mla_cli.cli import main

if __name__ == "__main__":
    main()
