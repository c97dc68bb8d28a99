"""What `sandbox.h` offers, declared for Cython.  Meanings stand there."""

from libc.stdint cimport uint64_t

cdef extern from "sandbox.h" nogil:
    enum:
        SANDBOX_READ
        SANDBOX_WRITE
        SANDBOX_MAKE
        SANDBOX_REMOVE

    int sandbox_no_new_privileges()
    uint64_t sandbox_capabilities()
    int sandbox_limit_capabilities(uint64_t kept)
    int sandbox_keep_capabilities(int keep)
    int sandbox_undumpable()
    int sandbox_landlock_abi()
    int sandbox_landlock_begin(int abi, int bind)
    int sandbox_landlock_path(int ruleset, int abi, int fd, int may)
    int sandbox_landlock_port(int ruleset, int port)
    int sandbox_landlock_end(int ruleset)
    int sandbox_unveil(const char *path, const char *permissions)
    int sandbox_pledge(const char *promises)
    int sandbox_capability_mode()
