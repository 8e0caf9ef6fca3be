"""``python -m redlab.cli``."""

from redlab.cli.main import app

if __name__ == "__main__":
    app()
