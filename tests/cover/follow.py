"""Imported by every Python of the coverage environment as it starts (a .pth does).

Owns: the following of Python lines in processes that end up confined.  Promises:
the file for what was seen is open before the program begins, so that neither
another user, a chroot nor a sandbox keeps it from being written at the end.
"""

import atexit
import json
import os
import time

folder = os.environ.get("TURNAWAY_COVER")
if folder is not None:
    import coverage

    name = f"{folder}/{os.getpid()}-{time.monotonic_ns()}.lines"
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    follower = coverage.Coverage(
        data_file=None, config_file=False, include=[os.environ["TURNAWAY_COVERED"]], messages=False
    )
    follower.set_option("run:disable_warnings", ["no-data-collected"])  # pytest's, for one
    follower.get_data()  # what it needs is imported while it can be
    follower.start()

    def end() -> None:
        follower.stop()
        data = follower.get_data()
        lines = {path: data.lines(path) for path in data.measured_files()}
        octets = json.dumps(lines).encode() + b"\n"
        while octets:
            octets = octets[os.write(file, octets) :]

    atexit.register(end)
