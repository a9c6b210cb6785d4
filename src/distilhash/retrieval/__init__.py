"""Codes by id in memory or in one file, searched by Hamming distance."""

from distilhash.retrieval.index import ENGINES, Index

__all__ = ["ENGINES", "Index"]
