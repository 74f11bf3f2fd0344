"""The `dropforge` command: thin commands over modules that can be used without a terminal."""

from dropforge.cli.app import main

__all__ = ("main",)
