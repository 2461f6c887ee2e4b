"""``python -m nearfield_server`` and the ``nearfield`` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from nearfield_server.cli import app

    app(prog_name="nearfield")


if __name__ == "__main__":
    main()
