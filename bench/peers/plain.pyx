# cython: language_level=3
"""Yardstick: accept4, send, close, and nothing else.

Owns one loop: level-triggered epoll on one listening socket, accepts in
bounded gulps, one fixed banner. Never returns; ends by signal. The honest
minimum of a server that sends its message in the obvious way.
"""

from libc.errno cimport errno

cdef extern from "<sys/socket.h>" nogil:
    int accept4(int, void*, void*, int)
    ssize_t send(int, const void*, size_t, int)
    int SOCK_NONBLOCK, SOCK_CLOEXEC, MSG_NOSIGNAL, MSG_DONTWAIT

cdef extern from "<unistd.h>" nogil:
    int close(int)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef struct epoll_event "struct epoll_event":
        unsigned int events
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event*)
    int epoll_wait(int, epoll_event*, int, int)
    int EPOLLIN, EPOLL_CTL_ADD

cdef enum:
    GULP = 64


def serve(int listener, bytes banner):
    cdef const char* text = banner
    cdef size_t size = len(banner)
    cdef epoll_event event
    cdef int loop = epoll_create1(0)
    cdef int fd, gulp
    event.events = EPOLLIN
    if loop < 0 or epoll_ctl(loop, EPOLL_CTL_ADD, listener, &event) < 0:
        raise OSError(errno, "epoll")
    with nogil:
        while True:
            epoll_wait(loop, &event, 1, -1)
            for gulp in range(GULP):
                fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
                if fd < 0:
                    break
                send(fd, text, size, MSG_NOSIGNAL | MSG_DONTWAIT)
                close(fd)
