#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "base/mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/limits.h"

/* What the handler may touch. It has no argument to find its data by, so this is one of the few
 * places with state of its own. start is written last at open and first at close. */
typedef struct guard {
    _Atomic uintptr_t start; /* 0: free */
    _Atomic size_t bytes;
    _Atomic bool lost;
} guard;

static guard guards[LIMIT_MAPPINGS];
static struct sigaction handler_before;
static uintptr_t page_bytes;
static pthread_once_t installed = PTHREAD_ONCE_INIT;

/* Everything from the faulting page to the end: what lies behind a lost page is lost too, and a
 * large file must not cost a fault a page. */
static bool replace_pages(guard *g, uintptr_t at) {
    const uintptr_t start = atomic_load(&g->start);
    const size_t bytes = atomic_load(&g->bytes);
    if (start == 0 || at < start || at - start >= bytes) return false;
    const uintptr_t page = at & ~(page_bytes - 1);
    if (mmap((void *)page, start + bytes - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
             -1, 0) == MAP_FAILED)
        return false;
    atomic_store(&g->lost, true);
    return true;
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
    const int saved = errno;
    (void)context;
    for (int i = 0; info->si_code > 0 && i < LIMIT_MAPPINGS; i++) {
        if (replace_pages(&guards[i], (uintptr_t)info->si_addr)) {
            errno = saved;
            return;
        }
    }
    /* Not ours. A fault happens again on return, and meets the handler before; a signal that
     * somebody sent has to be sent again. */
    (void)sigaction(number, &handler_before, NULL);
    if (info->si_code <= 0) (void)raise(number);
    errno = saved;
}

static void install_handler(void) {
    struct sigaction a = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_RESTART};
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    (void)sigemptyset(&a.sa_mask);
    (void)sigaction(SIGBUS, &a, &handler_before);
}

static int guard_take(const void *data, size_t bytes) {
    for (int i = 0; i < LIMIT_MAPPINGS; i++) {
        guard *g = &guards[i];
        if (atomic_load(&g->start) != 0) continue;
        atomic_store(&g->lost, false);
        atomic_store(&g->bytes, bytes);
        atomic_store(&g->start, (uintptr_t)data);
        return i;
    }
    return -1;
}

static int64_t mtime_ns(const struct stat *st) {
    return (int64_t)st->st_mtim.tv_sec * NS_PER_S + st->st_mtim.tv_nsec;
}

static status open_regular(const char *path, int *fd_out, struct stat *st, error *err) {
    /* O_NONBLOCK: opening a FIFO must not wait for its writer. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return error_set(err, errno == ENOENT || errno == ENOTDIR ? E_NOTFOUND : E_IO, "%s: %s",
                         path, strerror(errno));
    status s = OK;
    if (fstat(fd, st) != 0) {
        s = error_set(err, E_IO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(st->st_mode)) {
        s = error_set(err, E_IO, "%s: not a regular file", path);
    } else if (st->st_size == 0) {
        s = error_set(err, E_FORMAT, "%s: an empty file", path);
    }
    if (s != OK) {
        close(fd);
        return s;
    }
    *fd_out = fd;
    return OK;
}

status mapping_open(const char *path, mapping *out, error *err) {
    struct stat st;
    int fd = -1;
    status s = open_regular(path, &fd, &st, err);
    if (s != OK) return s;
    const size_t bytes = (size_t)st.st_size;
    (void)pthread_once(&installed, install_handler);
    void *data = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
        s = error_set(err, E_IO, "%s: mmap: %s", path, strerror(errno));
        goto fail_map;
    }
    const int slot = guard_take(data, bytes);
    if (slot < 0) {
        s = error_set(err, E_FULL, "%s: more than %d files are mapped", path, LIMIT_MAPPINGS);
        goto fail_guard;
    }
    *out = (mapping){data, bytes, fd, slot, mtime_ns(&st)};
    return OK;

fail_guard:
    munmap(data, bytes);
fail_map:
    close(fd);
    return s;
}

status mapping_check(const mapping *m, const char *path, error *err) {
    struct stat st;
    const bool lost = atomic_load(&guards[m->slot].lost);
    if (fstat(m->fd, &st) != 0) return error_set(err, E_IO, "%s: %s", path, strerror(errno));
    if ((size_t)st.st_size != m->bytes)
        return error_set(err, E_IO, "%s: changed from %zu to %lld bytes while it was read", path,
                         m->bytes, (long long)st.st_size);
    if (lost || mtime_ns(&st) != m->mtime_ns)
        return error_set(err, E_IO, "%s: %s while it was read", path,
                         lost ? "part of it was lost" : "was written to");
    return OK;
}

void mapping_close(mapping *m) {
    if (m->data == NULL) return;
    atomic_store(&guards[m->slot].start, (uintptr_t)0);
    munmap((void *)m->data, m->bytes);
    close(m->fd);
    *m = (mapping){0};
}
