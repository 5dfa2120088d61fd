"""Images, backbone networks, and image vectors."""
