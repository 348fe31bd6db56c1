"""One module for each MLproject entry point: the only place where the parts are wired together."""
