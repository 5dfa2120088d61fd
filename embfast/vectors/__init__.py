"""Keys and rows of numbers: lookup, search, statistics and pictures of them."""
