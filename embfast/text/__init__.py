"""Text to Corpus: files, token lists and table columns become encoded sequences."""
