"""What `net.h` offers, declared for Cython.  Meanings stand there."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

cdef extern from "net.h" nogil:
    cdef struct sockaddr_storage:
        pass

    cdef struct iovec:
        void *iov_base
        size_t iov_len

    enum:
        NET_DATAGRAMS
    int ENONET
    int EPROTO

    int net_accept(int listener, sockaddr_storage *peer)
    ssize_t net_send_held(int fd, const char *octets, size_t length)
    ssize_t net_send(int fd, const char *octets, size_t length)
    ssize_t net_read(int fd, unsigned char *octets, size_t most)
    ssize_t net_discard(int fd, size_t most)
    int net_half_close(int fd)
    void net_forget(int queue, int fd)
    int net_local(int fd, sockaddr_storage *local)
    int net_original(int fd, int six, sockaddr_storage *called)
    ssize_t net_peek(int fd, unsigned char *octets, size_t most)
    uint16_t net_unpack(const sockaddr_storage *source, unsigned char *address)
    int64_t net_calendar()
    int64_t net_steady()
    void net_sleep(int64_t micros)
    int net_own_descriptors()
    int net_close_range(unsigned int first, unsigned int last)
    enum:
        NET_SHARE
    int net_cork(int fd, int on)
    int net_give_up(int fd, int millis)
    int net_finwait(int fd, int seconds)
    int net_share(int fd)
    int64_t net_peer_user(int fd)
    void net_whole_blocks()
    void net_name_thread(const char *name)
    int net_send_datagrams(int fd, const iovec *datagrams, int count)
    int net_writable(int fd, int millis)
    uint32_t net_load32(const uint32_t *source)
    void net_store32(uint32_t *target, uint32_t value)
    uint64_t net_load64(const uint64_t *source)
    void net_add64(uint64_t *target, uint64_t more)
