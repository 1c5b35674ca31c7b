"""The demo: a state directory of its own, real processes in the roles of the gateway, and the real
watch loop on it. Nothing of it is left behind.
"""
