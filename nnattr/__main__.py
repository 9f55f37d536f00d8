"""``python -m nnattr`` is the ``nnattr`` command."""

from __future__ import annotations

from nnattr.cli import main

if __name__ == "__main__":
    main()
