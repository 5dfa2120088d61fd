"""Files as bytes: written whole or not at all, read with the place of each fault."""
