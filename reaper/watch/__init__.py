"""The sidecar: the loop that waits for what may change a verdict, and the parts that it uses."""
