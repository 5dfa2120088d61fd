"""Pictures, the networks that see them, and image vectors."""
