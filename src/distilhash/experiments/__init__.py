"""The paper's comparison: which trials there are, how each is run, and the report that shows them."""
