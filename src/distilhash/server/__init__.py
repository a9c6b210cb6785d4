"""An index of photographs over HTTP: a page, and the same answers as JSON."""
