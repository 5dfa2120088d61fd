"""Word vectors, and the co-occurrence counts that GloVe trains on."""
