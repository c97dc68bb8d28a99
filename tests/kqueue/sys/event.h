/*
 * sys/event.h - what ext/kqueue.pyx needs of kqueue(2), for systems without it.
 *
 * Owns: the names of the documented interface that the loop uses, so that it
 * can be compiled on Linux, and run over kqueue.c beside this folder.  The
 * numbers mean something to kqueue.c alone.  With NO_EVFILT_USER it is a system
 * that has none, as OpenBSD before 7.8 and NetBSD before 10.
 */
#ifndef TURNAWAY_TEST_EVENT_H
#define TURNAWAY_TEST_EVENT_H

#include <stdint.h>
#include <time.h>

struct kevent {
    uintptr_t ident;
    short filter;
    unsigned short flags;
    unsigned int fflags;
    int64_t data;
    void *udata;
};

#define EVFILT_READ (-1)
#ifndef NO_EVFILT_USER
#define EVFILT_USER (-11)
#define NOTE_TRIGGER 0x01000000
#endif

#define EV_ADD 0x0001
#define EV_DELETE 0x0002
#define EV_CLEAR 0x0020
#define EV_ERROR 0x4000
#define EV_EOF 0x8000

int kqueue(void);
int kevent(int queue, const struct kevent *changes, int changing,
           struct kevent *events, int most, const struct timespec *limit);

#endif
