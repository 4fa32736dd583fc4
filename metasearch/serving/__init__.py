"""A bundle as an HTTP service: the application, its batches, and the replicas of Ray Serve that run the network.

One process takes the requests (limits, token, batches, metrics) and hands whole batches to the replicas, which decode
and run them. Ray Serve's own proxy is left out: through it each request is a call of Ray's by itself, which holds a
core for 2 ms, and its batching, inside a replica, comes after that (measured: `python -m tests.bench serve`).
"""
