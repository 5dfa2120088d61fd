"""Text in, a Corpus out: files, token lists and tables of words become encoded sequences."""
