"""Folders of photographs: scanned, encoded, kept up to date in an index, and searched."""
