"""The benchmark suite: what one unwanted connection costs, here and elsewhere.

Owns everything that measures. Sends traffic to loopback only, bounds every
loop in count and time, and ends only processes it started itself.
"""
