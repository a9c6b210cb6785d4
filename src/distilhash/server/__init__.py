"""An index of photos over HTTP: a web page and a JSON API."""
