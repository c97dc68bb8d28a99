# cython: language_level=3
"""Yardstick: accept4, close, writing nothing: what the kernel alone costs.

Owns one loop: level-triggered epoll on one listening socket, accepts in
bounded gulps. Never returns; ends by signal. No server that completes the
handshake and closes can be expected to cost much less.
"""

from libc.errno cimport errno

cdef extern from "<sys/socket.h>" nogil:
    int accept4(int, void*, void*, int)
    int SOCK_NONBLOCK, SOCK_CLOEXEC

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


def serve(int listener):
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
                close(fd)
