"""Folders of photos: encoded, kept up to date in an index, and searched."""
