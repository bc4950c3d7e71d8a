"""`python -m sefi`: the program without its script."""

from sefi.cli.app import app

if __name__ == "__main__":
    app(prog_name="sefi")
