"""The demo: a state directory of its own, real processes that play the gateway, and the real watch
loop. It leaves nothing behind.
"""
