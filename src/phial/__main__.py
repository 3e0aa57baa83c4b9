"""`python -m phial` is `phial`."""

from __future__ import annotations

from phial.cli import main

if __name__ == "__main__":
    main()
