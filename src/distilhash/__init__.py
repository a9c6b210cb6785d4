"""distilhash."""
