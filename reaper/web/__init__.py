"""What the sidecar shows over HTTP, to whom, and the server."""
