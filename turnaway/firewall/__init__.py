"""Firewall rules that divert listed sources to the daemon: made, checked, applied.

Owns: everything that `turnawayctl firewall` does, one module for each concern.
`plan` is what was asked for, checked; a module named after a firewall turns a
plan into that firewall's text; `command` is the command line.  The daemon
loads nothing of this, and never touches a firewall.
"""
