/*
 * net.h - every system call of the hot path, and the only #if of platforms.
 *
 * Owns: how a connection is accepted, answered, looked at and closed on this
 * system, and the atomics that the loops and the shell share.  Promises: no
 * function here blocks, allocates or raises; each returns what the system
 * call returned and leaves errno as it was left.
 */
#ifndef TURNAWAY_NET_H
#define TURNAWAY_NET_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

/* Errnos that a system may not have get a number that no call returns. */
#ifndef ENONET
#define ENONET 100001
#endif
#ifndef EPROTO
#define EPROTO 100002
#endif

/* The most datagrams of one net_send_datagrams(). */
#define NET_DATAGRAMS 64

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

/*
 * Accept one connection, non-blocking and closed on exec, in one call where
 * the system has accept4 (Linux, FreeBSD, OpenBSD, NetBSD).
 */
static inline int net_accept(int listener, struct sockaddr_storage *peer)
{
    socklen_t size = sizeof *peer;
#if defined(SOCK_NONBLOCK) && defined(SOCK_CLOEXEC)
    return accept4(listener, (struct sockaddr *)peer, &size,
                   SOCK_NONBLOCK | SOCK_CLOEXEC);
#else
    int fd = accept(listener, (struct sockaddr *)peer, &size);
    if (fd >= 0) {
        (void)fcntl(fd, F_SETFL, O_NONBLOCK);
        (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
#if defined(SO_NOSIGPIPE)
        int on = 1;
        (void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
    }
    return fd;
#endif
}

/*
 * Hand the banner to the kernel without letting it leave: tcp(7) MSG_MORE
 * holds it until the FIN of the close goes with it, in one segment.  Where
 * MSG_MORE does not exist, TCP_NOPUSH on the listener does the same.
 */
static inline ssize_t net_send_held(int fd, const char *octets, size_t length)
{
#if defined(MSG_MORE)
    return send(fd, octets, length, MSG_MORE | MSG_DONTWAIT | MSG_NOSIGNAL);
#else
    return send(fd, octets, length, MSG_DONTWAIT | MSG_NOSIGNAL);
#endif
}

/* Hand over what shall leave at once. */
static inline ssize_t net_send(int fd, const char *octets, size_t length)
{
    return send(fd, octets, length, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* What the client has sent, at most `most` octets of it; returns as recv(2). */
static inline ssize_t net_read(int fd, unsigned char *octets, size_t most)
{
    return recv(fd, octets, most, MSG_DONTWAIT);
}

/*
 * Throw away what the client has sent, at most `most` octets of it: > 0 it
 * talked, 0 it sent its FIN, -1 with EAGAIN it is silent.  With MSG_TRUNC
 * (tcp(7), Linux) nothing is copied and no buffer is needed.
 */
static inline ssize_t net_discard(int fd, size_t most)
{
#if defined(__linux__)
    return recv(fd, NULL, most, MSG_DONTWAIT | MSG_TRUNC);
#else
    char nowhere[16384];
    if (most > sizeof nowhere)
        most = sizeof nowhere;
    return recv(fd, nowhere, most, MSG_DONTWAIT);
#endif
}

static inline int net_half_close(int fd) { return shutdown(fd, SHUT_WR); }

/* The address of this end: 0 or -1. */
static inline int net_local(int fd, struct sockaddr_storage *local)
{
    socklen_t size = sizeof *local;
    return getsockname(fd, (struct sockaddr *)local, &size);
}

/*
 * The address that was called before a firewall's redirect or dnat changed it:
 * 0, or -1 with ENOPROTOOPT where the kernel follows no connections at all, with
 * ENOENT where not this one.  netfilter's SO_ORIGINAL_DST (80, for IPv6 too:
 * linux/netfilter_ipv4.h, ip6_tables.h) goes by the family of the client, also on
 * a socket of both families; no privilege is needed.
 */
static inline int net_original(int fd, int six, struct sockaddr_storage *called)
{
#if defined(__linux__)
    socklen_t size = sizeof *called;
    return getsockopt(fd, six ? IPPROTO_IPV6 : IPPROTO_IP, 80, called, &size);
#else
    (void)fd, (void)six, (void)called;
    errno = ENOPROTOOPT;
    return -1;
#endif
}

/* What the client has sent, and leave it there; returns as recv(2). */
static inline ssize_t net_peek(int fd, unsigned char *octets, size_t most)
{
    return recv(fd, octets, most, MSG_DONTWAIT | MSG_PEEK);
}

/*
 * An address as 16 octets, IPv4 in its v4-mapped form (RFC 4291 2.5.5.2), so
 * that one record serves both families.  Returns the port, host order.
 */
static inline uint16_t net_unpack(const struct sockaddr_storage *from,
                                  unsigned char *address)
{
    if (from->ss_family == AF_INET6) {
        const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)from;
        memcpy(address, &six->sin6_addr, 16);
        return ntohs(six->sin6_port);
    }
    const struct sockaddr_in *four = (const struct sockaddr_in *)from;
    memset(address, 0, 10);
    address[10] = address[11] = 0xff;
    memcpy(address + 12, &four->sin_addr, 4);
    return ntohs(four->sin_port);
}

/* Microseconds: of the calendar (for records) and of the steady clock (for
 * deadlines).  Both are read without a system call on Linux (vdso(7)). */
static inline int64_t net_calendar(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static inline int64_t net_steady(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static inline void net_sleep(int64_t micros)
{
    struct timespec wait = {micros / 1000000, (micros % 1000000) * 1000};
    (void)nanosleep(&wait, NULL);
}

/*
 * Give this thread a descriptor table of its own (unshare(2) CLONE_FILES, no
 * privilege needed): a table shared between threads costs every accept and
 * close an atomic operation on one cache line.  0 when it now has its own.
 */
static inline int net_own_descriptors(void)
{
#if defined(__linux__)
    return unshare(CLONE_FILES);
#else
    errno = ENOSYS;
    return -1;
#endif
}

/*
 * Close descriptors first..last of this thread's table, both included: one
 * call for all of them where close_range(2) exists.  0, or -1 where it does
 * not, and then nothing is closed.
 */
static inline int net_close_range(unsigned first, unsigned last)
{
#if defined(__linux__) && defined(SYS_close_range)
    return first <= last ? (int)syscall(SYS_close_range, first, last, 0u) : 0;
#else
    (void)first;
    (void)last;
    return -1;
#endif
}

/*
 * Send `count` datagrams, of which number i is iov[i]; how many were taken, or
 * -1.  One system call for all of them where sendmmsg exists.
 */
static inline int net_send_datagrams(int fd, const struct iovec *iov, int count)
{
#if defined(__linux__) || defined(__FreeBSD__) || defined(__NetBSD__)
    struct mmsghdr messages[NET_DATAGRAMS];
    if (count > NET_DATAGRAMS)
        count = NET_DATAGRAMS;
    memset(messages, 0, sizeof messages[0] * (size_t)count);
    for (int i = 0; i < count; i++) {
        messages[i].msg_hdr.msg_iov = (struct iovec *)&iov[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    return sendmmsg(fd, messages, (unsigned)count, MSG_DONTWAIT | MSG_NOSIGNAL);
#else
    int sent = 0;
    while (sent < count && send(fd, iov[sent].iov_base, iov[sent].iov_len,
                                MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        sent++;
    return sent > 0 ? sent : -1;
#endif
}

/* Wait until `fd` can be written to, or `millis` are over: true if it can. */
static inline int net_writable(int fd, int millis)
{
    struct pollfd one = {fd, POLLOUT, 0};
    return poll(&one, 1, millis) == 1 && (one.revents & POLLOUT) != 0;
}

/*
 * Options of a listening socket that accepted ones inherit.  Each returns 1 when
 * it is set, 0 where the system has no such option, or -1.
 */
static inline int net_option(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof value) == 0 ? 1 : -1;
}

/* Hold back what is sent until the FIN goes with it: tcp(7), tcp(4). */
static inline int net_cork(int fd, int on)
{
#if defined(TCP_CORK)
    return net_option(fd, IPPROTO_TCP, TCP_CORK, on);
#elif defined(TCP_NOPUSH) /* FreeBSD, OpenBSD, macOS */
    return net_option(fd, IPPROTO_TCP, TCP_NOPUSH, on);
#else
    (void)fd, (void)on;
    return 0;
#endif
}

/* Give a client up that has acknowledged nothing for so long. */
static inline int net_give_up(int fd, int millis)
{
#if defined(TCP_USER_TIMEOUT)
    return net_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, millis);
#elif defined(TCP_MAXUNACKTIME) /* FreeBSD: seconds */
    return net_option(fd, IPPROTO_TCP, TCP_MAXUNACKTIME, (millis + 999) / 1000);
#elif defined(TCP_RXT_CONNDROPTIME) /* macOS: seconds of retransmission */
    return net_option(fd, IPPROTO_TCP, TCP_RXT_CONNDROPTIME, (millis + 999) / 1000);
#else
    (void)fd, (void)millis;
    return 0;
#endif
}

/* How long FIN-WAIT-2 lasts; -1: neither that nor TIME-WAIT. */
static inline int net_finwait(int fd, int seconds)
{
#if defined(TCP_LINGER2)
    return net_option(fd, IPPROTO_TCP, TCP_LINGER2, seconds);
#else
    (void)fd, (void)seconds;
    return 0;
#endif
}

/*
 * Sockets of one address that share its connections evenly: not at all, by an
 * option set before bind, or by one that may be set later.  Where it is not at
 * all, SO_REUSEPORT means something else: one of them gets every connection.
 */
enum { NET_SHARE_NONE, NET_SHARE_BEFORE_BIND, NET_SHARE_ANY_TIME };
#if defined(__linux__)
enum { NET_SHARE = NET_SHARE_ANY_TIME };
#elif defined(SO_REUSEPORT_LB)
enum { NET_SHARE = NET_SHARE_BEFORE_BIND };
#else
enum { NET_SHARE = NET_SHARE_NONE };
#endif

static inline int net_share(int fd)
{
#if defined(__linux__)
    return net_option(fd, SOL_SOCKET, SO_REUSEPORT, 1);
#elif defined(SO_REUSEPORT_LB)
    return net_option(fd, SOL_SOCKET, SO_REUSEPORT_LB, 1);
#else
    (void)fd;
    return 0;
#endif
}

/* The user at the other end of a local socket, or -1. */
static inline int64_t net_peer_user(int fd)
{
#if defined(SO_PEERCRED) && defined(__linux__)
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 ? (int64_t)peer.uid : -1;
#else
    uid_t user;
    gid_t group;
    return getpeereid(fd, &user, &group) == 0 ? (int64_t)user : -1;
#endif
}

/*
 * Let big blocks of memory come from mmap(2) alone, so that they go back when they
 * are freed: mallopt(3).  By itself glibc raises its limit to the size of the last
 * that was freed, up to 32 MiB; tables of half a million addresses, read again with
 * each reload, then leave a heap full of holes.
 */
static inline void net_whole_blocks(void)
{
#if defined(__GLIBC__)
    (void)mallopt(M_MMAP_THRESHOLD, 128 * 1024);
#endif
}

/* A name for this thread in ps, top and gdb (at most 15 octets). */
static inline void net_name_thread(const char *name)
{
#if defined(__linux__)
    (void)prctl(PR_SET_NAME, name, 0, 0, 0);
    /* A pause of a millisecond should end near a millisecond, not 50 us on. */
    (void)prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
#else
    (void)name;
#endif
}

#if defined(TURNAWAY_KQUEUE) /* setup.py sets it for ext/kqueue.pyx alone */
#include <sys/event.h>

/*
 * Whether nanosleep(2) can end within a millisecond.  OpenBSD and NetBSD wait
 * for ticks of their clock, 10 ms each (hz(9)): a pause meant for a
 * millisecond would let 20 ms of connections overflow a short queue.
 */
#if defined(__OpenBSD__) || defined(__NetBSD__)
#define NET_SHORT_SLEEPS 0
#else
#define NET_SHORT_SLEEPS 1
#endif

/* The most descriptors of one net_queue_open(). */
#define NET_QUEUE_FDS 3

/* A change to the queue.  The mark comes back with the event; `udata` is a
 * pointer on most systems, an integer on NetBSD before 10. */
static inline void net_change(struct kevent *change, int fd, int filter,
                              int flags, uint32_t mark)
{
    memset(change, 0, sizeof *change);
    change->ident = (uintptr_t)fd;
    change->filter = (__typeof__(change->filter))filter;
    change->flags = (__typeof__(change->flags))flags;
    change->udata = (__typeof__(change->udata))(uintptr_t)mark;
}

static inline uint32_t net_mark(const struct kevent *event)
{
    return (uint32_t)(uintptr_t)event->udata;
}

/*
 * A kqueue, closed on exec, that can be woken; how many descriptors it took, or
 * -1.  The first is the queue, the last what net_queue_wake() takes; a wakeup
 * arrives as an event with `mark`.  One descriptor with EVFILT_USER (FreeBSD,
 * macOS, NetBSD 10, OpenBSD 7.8); without it, a pipe and the queue.
 */
static inline int net_queue_open(int *fds, uint32_t mark)
{
    struct kevent change;
    int made = 1;
    fds[0] = kqueue();
    if (fds[0] < 0)
        return -1;
#if defined(EVFILT_USER)
    net_change(&change, 0, EVFILT_USER, EV_ADD | EV_CLEAR, mark);
#else
    if (pipe(&fds[1]) != 0) {
        close(fds[0]);
        return -1;
    }
    made = 3;
    net_change(&change, fds[1], EVFILT_READ, EV_ADD, mark);
#endif
    for (int i = 0; i < made; i++) {
        (void)fcntl(fds[i], F_SETFD, FD_CLOEXEC);
        if (i > 0)
            (void)fcntl(fds[i], F_SETFL, O_NONBLOCK);
    }
    if (kevent(fds[0], &change, 1, NULL, 0, NULL) != 0) {
        for (int i = 0; i < made; i++)
            close(fds[i]);
        return -1;
    }
    return made;
}

/* Wake the loop: 0 or -1.  A full pipe will wake it as well. */
static inline int net_queue_wake(int fd)
{
#if defined(EVFILT_USER)
    struct kevent change;
    net_change(&change, 0, EVFILT_USER, 0, 0);
    change.fflags = NOTE_TRIGGER;
    return kevent(fd, &change, 1, NULL, 0, NULL);
#else
    return write(fd, "", 1) == 1 || errno == EAGAIN ? 0 : -1;
#endif
}

/* After a wakeup, given its event: EVFILT_USER rearms itself, a pipe is read. */
static inline void net_queue_woken(const struct kevent *event)
{
    char notes[64];
    if (event->filter == EVFILT_READ)
        while (read((int)event->ident, notes, sizeof notes) == sizeof notes)
            ;
}
#endif

/*
 * Before a watched descriptor is closed.  It leaves its epoll or kqueue by
 * itself; but libkqueue would take the next of its number for the old one.
 */
static inline void net_forget(int queue, int fd)
{
#if defined(LIBKQUEUE) && defined(TURNAWAY_KQUEUE)
    struct kevent change;
    net_change(&change, fd, EVFILT_READ, EV_DELETE, 0);
    (void)kevent(queue, &change, 1, NULL, 0, NULL);
#else
    (void)queue;
    (void)fd;
#endif
}

/* One writer, any readers: what was written before a release is seen by who
 * acquires it. */
static inline uint32_t net_load32(const uint32_t *from)
{ return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
static inline void net_store32(uint32_t *to, uint32_t value)
{ __atomic_store_n(to, value, __ATOMIC_RELEASE); }

/* A counter with one writer: no lock prefix, yet never a torn read; who sees
 * it sees everything that was counted before it. */
static inline uint64_t net_load64(const uint64_t *from)
{ return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
static inline void net_add64(uint64_t *to, uint64_t more)
{
    __atomic_store_n(to, __atomic_load_n(to, __ATOMIC_RELAXED) + more,
                     __ATOMIC_RELEASE);
}

#endif
