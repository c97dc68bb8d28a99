/*
 * kqueue.c - enough of kqueue(2) on Linux for the loop of the BSDs to be tested.
 *
 * Owns: kqueue() and kevent() over epoll(7), with EVFILT_READ on sockets and
 * pipes and one EVFILT_USER a queue.  Promises, as the manual pages: changes
 * come before events; a change that fails ends the call, or becomes an event
 * with EV_ERROR where there is room; a listening socket says how many wait, any
 * other how many octets, and EV_EOF; a closed descriptor leaves its queues by
 * itself.  Nothing is allocated but by kqueue().  A change that the loop does not
 * make is EINVAL.
 *
 * It is no emulation to build on: one thread waits on a queue (any may trigger
 * its user event), and the queue's memory lives as long as the process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/event.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FDS = 1 << 17, ROOM = 64, USER = FDS };

/* Of each queue, the mark of each descriptor; the last is the user event's. */
static void **queues[FDS];
static int always = -1; /* readable at all times: arming it is an event */

int kqueue(void)
{
    size_t size = sizeof(void *) * (FDS + 1);
    int queue;
    if (always < 0)
        always = eventfd(1, EFD_CLOEXEC);
    queue = epoll_create1(EPOLL_CLOEXEC);
    if (queue < 0)
        return -1;
    if (queue >= FDS) {
        close(queue);
        errno = EMFILE;
        return -1;
    }
    /* The number of a queue that was closed: its memory is cleared and used again. */
    if (queues[queue] && madvise(queues[queue], size, MADV_DONTNEED) == 0)
        return queue;
    queues[queue] = mmap(NULL, size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (queues[queue] == MAP_FAILED) {
        queues[queue] = NULL;
        close(queue);
        return -1;
    }
    return queue;
}

static int arm(int queue, int fd, uint32_t events, unsigned which)
{
    struct epoll_event event = {.events = events, .data.u32 = which};
    if (epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event) == 0)
        return 0;
    return errno == EEXIST ? epoll_ctl(queue, EPOLL_CTL_MOD, fd, &event) : -1;
}

#ifdef EVFILT_USER
static int change_user(int queue, const struct kevent *change)
{
    if (change->flags & EV_ADD) {
        queues[queue][USER] = change->udata;
        return arm(queue, always, 0, USER);
    }
    /* Armed for once, as EV_CLEAR would have it; ENOENT if it was never added. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u32 = USER};
    return epoll_ctl(queue, EPOLL_CTL_MOD, always, &event);
}
#endif

static int change_one(int queue, const struct kevent *change)
{
    int fd = (int)change->ident;
#ifdef EVFILT_USER
    if (change->filter == EVFILT_USER &&
        (change->flags == (EV_ADD | EV_CLEAR) || change->fflags == NOTE_TRIGGER))
        return change_user(queue, change);
#endif
    if (change->filter != EVFILT_READ ||
        (change->flags != EV_ADD && change->flags != EV_DELETE)) {
        errno = EINVAL; /* something new in the loop: teach it to this file */
        return -1;
    }
    if (change->ident >= FDS) {
        errno = EBADF;
        return -1;
    }
    if (change->flags == EV_DELETE)
        return epoll_ctl(queue, EPOLL_CTL_DEL, fd, NULL);
    queues[queue][fd] = change->udata;
    return arm(queue, fd, EPOLLIN | EPOLLRDHUP, (unsigned)fd);
}

/* What EVFILT_READ says of a descriptor; false when there is nothing to say. */
static int report(struct kevent *event, void *udata, int fd, uint32_t said)
{
    struct tcp_info info;
    int listens = 0, octets = 0;
    socklen_t size = sizeof listens;
    memset(event, 0, sizeof *event);
    event->ident = (uintptr_t)fd;
    event->filter = EVFILT_READ;
    event->udata = udata;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens) {
        size = sizeof info;
        memset(&info, 0, sizeof info);
        /* Of a listening socket on Linux: the length of its accept queue. */
        if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
            return 0;
        event->data = info.tcpi_unacked;
        return event->data > 0; /* else another worker was faster */
    }
    (void)ioctl(fd, FIONREAD, &octets);
    event->data = octets;
    if (said & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        event->flags = EV_EOF;
    return 1;
}

static int64_t steady(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int kevent(int queue, const struct kevent *changes, int changing,
           struct kevent *events, int most, const struct timespec *limit)
{
    struct epoll_event ready[ROOM];
    struct timespec left;
    int64_t until = 0;
    int came, told = 0, i;
    if (queue < 0 || queue >= FDS || !queues[queue]) {
        errno = EBADF;
        return -1;
    }
    for (i = 0; i < changing; i++) {
        if (change_one(queue, &changes[i]) == 0)
            continue;
        if (told >= most)
            return -1;
        events[told] = changes[i];
        events[told].flags = EV_ERROR;
        events[told++].data = errno;
    }
    if (told > 0 || most <= 0) /* FreeBSD: for no events nobody waits */
        return told;
    if (limit)
        until = steady() + (int64_t)limit->tv_sec * 1000000000 + limit->tv_nsec;
    do {
        if (limit) {
            int64_t nanos = until - steady();
            nanos = nanos > 0 ? nanos : 0;
            left.tv_sec = nanos / 1000000000;
            left.tv_nsec = nanos % 1000000000;
        }
        came = epoll_pwait2(queue, ready, most < ROOM ? most : ROOM, limit ? &left : NULL, NULL);
        for (i = 0; i < came; i++) {
            unsigned which = ready[i].data.u32;
            void *udata = queues[queue][which];
            if (which != USER) {
                told += report(&events[told], udata, (int)which, ready[i].events);
#ifdef EVFILT_USER
            } else {
                memset(&events[told], 0, sizeof events[told]);
                events[told].filter = EVFILT_USER;
                events[told++].udata = udata;
#endif
            }
        }
    } while (came > 0 && told == 0);
    return came < 0 ? -1 : told;
}
