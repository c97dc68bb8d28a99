/*
 * platforms.h - Linux with less in it, and with what other systems have instead.
 *
 * Owns: the differences between Linux and the systems of ext/kqueue.pyx as
 * ext/net.h asks for them, given to the compiler before everything else
 * (-include, after Python.h).  With -DAS_BARE the result runs on Linux, without
 * accept4, MSG_MORE, MSG_NOSIGNAL and EVFILT_USER, and with what libkqueue needs;
 * with the others it is only compiled.  __FreeBSD__ and __NetBSD__ are not
 * among them: gcc's own headers would then ask for theirs.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#undef __linux__
#undef MSG_MORE
#undef SO_PEERCRED
#undef TCP_CORK
#undef TCP_LINGER2
#undef TCP_USER_TIMEOUT

int getpeereid(int fd, uid_t *user, gid_t *group);

#if defined(AS_FREEBSD)
#define TCP_NOPUSH 4
#define TCP_MAXUNACKTIME 68
#define SO_REUSEPORT_LB 0x00010000
#elif defined(AS_OPENBSD)
#define __OpenBSD__ 1
int pledge(const char *promises, const char *execpromises);
int unveil(const char *path, const char *permissions);
#define NO_EVFILT_USER
#define TCP_NOPUSH 16
#elif defined(AS_NETBSD)
/* It has none of all these. */
#elif defined(AS_MACOS)
#undef SOCK_NONBLOCK
#undef SOCK_CLOEXEC
#undef MSG_NOSIGNAL
#define SO_NOSIGPIPE 0x1022
#define TCP_NOPUSH 4
#define TCP_RXT_CONNDROPTIME 0x80
#elif defined(AS_BARE)
#undef SOCK_NONBLOCK
#undef SOCK_CLOEXEC
#undef MSG_NOSIGNAL
#ifndef NO_EVFILT_USER
#define NO_EVFILT_USER
#endif
#define LIBKQUEUE 1
#else
#error "as what?"
#endif
