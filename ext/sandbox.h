/*
 * sandbox.h - what a process can give up for good, one way a platform.
 *
 * Owns: the calls by which the daemon closes the door behind itself, and the
 * numbers of Landlock, which a system's headers may be too old to have.
 * Promises: no function here allocates; each returns 0, or -1 and errno, which
 * is ENOSYS where the platform has nothing of the kind.  None is ever called
 * from a loop.  pledge, unveil and cap_enter are written by their manuals and
 * were never run.
 */
#ifndef TURNAWAY_SANDBOX_H
#define TURNAWAY_SANDBOX_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__linux__)
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#elif defined(__FreeBSD__)
#include <sys/capsicum.h>
#include <sys/procctl.h>
#endif

/* What may still be done to a file, or beneath a directory. */
enum {
    SANDBOX_READ = 1,   /* open for reading, list */
    SANDBOX_WRITE = 2,  /* open for writing, shorten */
    SANDBOX_MAKE = 4,   /* make a regular file */
    SANDBOX_REMOVE = 8  /* remove a file; with MAKE, rename one */
};

/* Nothing this process executes may gain privileges: prctl(2). */
static inline int sandbox_no_new_privileges(void)
{
#if defined(__linux__)
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
#else
    return 0;
#endif
}

/*
 * Capabilities of this thread, as bits: capabilities(7).  Threads that it makes
 * have the same.  Where a system has none, there is nothing to read or to change.
 */
static inline uint64_t sandbox_capabilities(void)
{
#if defined(__linux__)
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    memset(data, 0, sizeof data);
    if (syscall(SYS_capget, &head, data) != 0)
        return 0;
    return (uint64_t)data[1].permitted << 32 | data[0].permitted;
#else
    return 0;
#endif
}

/* Have none but `kept`, permitted and effective alike, and nothing to inherit:
 * 0 or -1.  With nothing to inherit the ambient ones go too. */
static inline int sandbox_limit_capabilities(uint64_t kept)
{
#if defined(__linux__)
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    memset(data, 0, sizeof data);
    data[0].permitted = data[0].effective = (uint32_t)kept;
    data[1].permitted = data[1].effective = (uint32_t)(kept >> 32);
    return (int)syscall(SYS_capset, &head, data);
#else
    (void)kept;
    return 0;
#endif
}

/* Whether capabilities outlive the change to an ordinary user: prctl(2). */
static inline int sandbox_keep_capabilities(int keep)
{
#if defined(__linux__)
    return prctl(PR_SET_KEEPCAPS, keep, 0, 0, 0);
#else
    (void)keep;
    return 0;
#endif
}

/* No core of this process is written, and only root may look into it: prctl(2),
 * procctl(2).  RLIMIT_CORE is not asked where cores go through a pipe, core(5). */
static inline int sandbox_undumpable(void)
{
#if defined(__linux__)
    return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#elif defined(__FreeBSD__)
    int how = PROC_TRACE_CTL_DISABLE;
    return procctl(P_PID, getpid(), PROC_TRACE_CTL, &how);
#else
    return 0;
#endif
}

/* landlock(7).  Three system calls, of the same numbers on every machine. */
enum {
    LANDLOCK_CREATE = 444,
    LANDLOCK_ADD = 445,
    LANDLOCK_RESTRICT = 446,
    LANDLOCK_ASK_VERSION = 1,
    LANDLOCK_BENEATH = 1,
    LANDLOCK_PORT = 2,
    LANDLOCK_BIND = 1,    /* and connect is 2 */
    LANDLOCK_MOST_ABI = 7 /* the newest one that is known here */
};

enum {
    LANDLOCK_FS_WRITE_FILE = 1 << 1,
    LANDLOCK_FS_READ_FILE = 1 << 2,
    LANDLOCK_FS_READ_DIR = 1 << 3,
    LANDLOCK_FS_REMOVE_FILE = 1 << 5,
    LANDLOCK_FS_MAKE_REG = 1 << 8,
    LANDLOCK_FS_FIRST = (1 << 13) - 1, /* all of ABI 1 */
    LANDLOCK_FS_REFER = 1 << 13,       /* 2 */
    LANDLOCK_FS_TRUNCATE = 1 << 14,    /* 3 */
    LANDLOCK_FS_IOCTL_DEV = 1 << 15    /* 5 */
};

struct sandbox_ruleset {
    uint64_t files;
    uint64_t network;
    uint64_t scoped; /* 1: abstract sockets, 2: signals of others */
};

/* The layout of the kernel, which has no padding here. */
struct sandbox_beneath {
    uint64_t allowed;
    int32_t parent;
} __attribute__((packed));

struct sandbox_port {
    uint64_t allowed;
    uint64_t port;
};

/* The version of Landlock that can be used here, at least 1; or -1. */
static inline int sandbox_landlock_abi(void)
{
#if defined(__linux__)
    long abi = syscall(LANDLOCK_CREATE, NULL, (size_t)0, LANDLOCK_ASK_VERSION);
    return abi > LANDLOCK_MOST_ABI ? LANDLOCK_MOST_ABI : (int)abi;
#else
    errno = ENOSYS;
    return -1;
#endif
}

/*
 * A ruleset that forbids all that version `abi` can forbid, but not bind(2) if
 * `bind` is true: a descriptor, or -1.
 */
static inline int sandbox_landlock_begin(int abi, int bind)
{
#if defined(__linux__)
    struct sandbox_ruleset all = {LANDLOCK_FS_FIRST, 0, 0};
    if (abi >= 2)
        all.files |= LANDLOCK_FS_REFER;
    if (abi >= 3)
        all.files |= LANDLOCK_FS_TRUNCATE;
    if (abi >= 4)
        all.network = bind ? 2 : 3;
    if (abi >= 5)
        all.files |= LANDLOCK_FS_IOCTL_DEV;
    if (abi >= 6)
        all.scoped = 3;
    return (int)syscall(LANDLOCK_CREATE, &all, sizeof all, 0);
#else
    (void)abi;
    (void)bind;
    errno = ENOSYS;
    return -1;
#endif
}

/* Allow SANDBOX_* for a file, or beneath a directory, that is open (O_PATH will do). */
static inline int sandbox_landlock_path(int ruleset, int abi, int fd, int may)
{
#if defined(__linux__)
    struct sandbox_beneath rule = {0, fd};
    struct stat status;
    if (fstat(fd, &status) != 0)
        return -1;
    if (may & SANDBOX_READ)
        rule.allowed |= LANDLOCK_FS_READ_FILE;
    if (may & SANDBOX_WRITE)
        rule.allowed |= LANDLOCK_FS_WRITE_FILE | (abi >= 3 ? LANDLOCK_FS_TRUNCATE : 0);
    if (S_ISDIR(status.st_mode)) { /* a file takes no other rule */
        if (may & SANDBOX_READ)
            rule.allowed |= LANDLOCK_FS_READ_DIR;
        if (may & SANDBOX_MAKE)
            rule.allowed |= LANDLOCK_FS_MAKE_REG;
        if (may & SANDBOX_REMOVE)
            rule.allowed |= LANDLOCK_FS_REMOVE_FILE;
    }
    if (rule.allowed == 0) /* the kernel takes no empty rule */
        return 0;
    return (int)syscall(LANDLOCK_ADD, ruleset, LANDLOCK_BENEATH, &rule, 0);
#else
    (void)ruleset;
    (void)abi;
    (void)fd;
    (void)may;
    errno = ENOSYS;
    return -1;
#endif
}

/* Allow bind(2) to a TCP port. */
static inline int sandbox_landlock_port(int ruleset, int port)
{
#if defined(__linux__)
    struct sandbox_port rule = {LANDLOCK_BIND, (uint64_t)port};
    return (int)syscall(LANDLOCK_ADD, ruleset, LANDLOCK_PORT, &rule, 0);
#else
    (void)ruleset;
    (void)port;
    errno = ENOSYS;
    return -1;
#endif
}

/* From now on, for this thread and those it starts; needs no_new_privs. */
static inline int sandbox_landlock_end(int ruleset)
{
#if defined(__linux__)
    return (int)syscall(LANDLOCK_RESTRICT, ruleset, 0);
#else
    (void)ruleset;
    errno = ENOSYS;
    return -1;
#endif
}

/* unveil(2); NULL, NULL is the last call. */
static inline int sandbox_unveil(const char *path, const char *permissions)
{
#if defined(__OpenBSD__)
    return unveil(path, permissions);
#else
    (void)path;
    (void)permissions;
    errno = ENOSYS;
    return -1;
#endif
}

/* pledge(2), with nothing said of what is executed: that is not promised. */
static inline int sandbox_pledge(const char *promises)
{
#if defined(__OpenBSD__)
    return pledge(promises, NULL);
#else
    (void)promises;
    errno = ENOSYS;
    return -1;
#endif
}

/* cap_enter(2): no path, no address, no other process any more. */
static inline int sandbox_capability_mode(void)
{
#if defined(__FreeBSD__)
    return cap_enter();
#else
    errno = ENOSYS;
    return -1;
#endif
}

#endif
