"""The paper's comparison: ``planning`` says which cells there are, ``running`` computes and measures them."""

from distilhash.reproduction.running import reproduce

__all__ = ["reproduce"]
