#include "server/admin.h"

#include <microhttpd.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "server/process.h"
#include "server/statusz.h"
#include "server/unix_socket.h"

/* One peer cannot take all connections, so that a probe from elsewhere gets through. */
enum {
    CONNECTIONS_MAX = 64,
    CONNECTIONS_A_PEER_MAX = 32,
    TIMEOUT_S = 10,
    HOST_BYTES = 256,
    BACKLOG = 64
};

struct admin {
    server *server;
    struct MHD_Daemon *daemon;
    char address[HOST_BYTES + 16];
    const char *socket_path; /* of a unix socket, within address; else NULL */
};

static void write_metrics(server *s, FILE *out) {
    metrics_view v;
    server_view(s, &v);
    v.log_dropped = log_dropped();
    metrics_write(server_metrics(s), &v, out);
    process_write_metrics(out);
}

static void write_live(server *s, FILE *out) {
    fputs(server_live(s) ? "ok\n" : "the engine does not move\n", out);
}

static void write_ready(server *s, FILE *out) {
    fprintf(out, "%s\n", server_ready(s) ? "ok" : server_state_name(s));
}

static bool always(const server *s) {
    (void)s;
    return true;
}

static const struct page {
    const char *path, *type;
    bool (*good)(const server *s); /* false: 503 */
    void (*write)(server *s, FILE *out);
} PAGES[] = {
    {"/metrics", "text/plain; version=0.0.4; charset=utf-8", always, write_metrics},
    {"/livez", "text/plain", server_live, write_live},
    {"/readyz", "text/plain", server_ready, write_ready},
    {"/statusz", "text/html; charset=utf-8", always, statusz_write},
};

static enum MHD_Result respond(struct MHD_Connection *c, unsigned code, const char *type,
                               char *body, size_t len) {
    struct MHD_Response *r = MHD_create_response_from_buffer(len, body, MHD_RESPMEM_MUST_FREE);
    if (!r) {
        free(body);
        return MHD_NO;
    }
    MHD_add_response_header(r, "Content-Type", type);
    MHD_add_response_header(r, "Cache-Control", "no-store");
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(r, "Content-Security-Policy",
                            "default-src 'none'; style-src 'unsafe-inline'");
    const enum MHD_Result e = MHD_queue_response(c, code, r);
    MHD_destroy_response(r);
    return e;
}

static enum MHD_Result on_request(void *ctx, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_bytes, void **state) {
    (void)version, (void)upload, (void)state;
    admin *a = ctx;
    if (*upload_bytes > 0) { /* nothing here takes a body */
        *upload_bytes = 0;
        return MHD_YES;
    }
    char *body = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&body, &len);
    if (!out) return MHD_NO;
    unsigned code = MHD_HTTP_NOT_FOUND;
    const char *type = "text/plain";
    const bool get = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
    if (!get) code = MHD_HTTP_METHOD_NOT_ALLOWED;
    for (size_t i = 0; get && i < sizeof PAGES / sizeof *PAGES; i++) {
        if (strcmp(url, PAGES[i].path) != 0) continue;
        code = PAGES[i].good(a->server) ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
        type = PAGES[i].type;
        PAGES[i].write(a->server, out);
    }
    if (code == MHD_HTTP_NOT_FOUND) fputs("/metrics /livez /readyz /statusz\n", out);
    if (fclose(out) != 0) {
        free(body);
        return MHD_NO;
    }
    return respond(c, code, type, body, len);
}

/* host:port -> address; the host may be in brackets. */
static status resolve(const char *addr, char host[HOST_BYTES], struct addrinfo **out, error *err) {
    const char *colon = strrchr(addr, ':');
    size_t n = colon ? (size_t)(colon - addr) : 0;
    const char *from = addr;
    if (n >= 2 && addr[0] == '[' && addr[n - 1] == ']') {
        from++;
        n -= 2;
    }
    if (!colon || n == 0 || n >= HOST_BYTES)
        return error_set(err, E_IO, "admin.listen: %s is not host:port", addr);
    memcpy(host, from, n);
    host[n] = '\0';
    const struct addrinfo hints = {.ai_family = AF_UNSPEC,
                                   .ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    if (getaddrinfo(host, colon + 1, &hints, out) != 0)
        return error_set(err, E_IO, "admin.listen: %s is no address of this host", addr);
    return OK;
}

static status open_unix(admin *a, const char *addr, error *err) {
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    const char *path = unix_socket_path(addr);
    struct stat st;
    if (*path == '\0' || strlen(path) >= sizeof sa.sun_path)
        return error_set(err, E_IO, "admin.listen: %s: a path of 1 to %zu bytes is needed", addr,
                         sizeof sa.sun_path - 1);
    snprintf(sa.sun_path, sizeof sa.sun_path, "%s", path);
    snprintf(a->address, sizeof a->address, "%s", addr);
    /* A socket that an earlier process left behind would be in the way; other files stay, and so
     * does a socket that answers. */
    if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode)) {
        if (unix_socket_in_use(addr))
            return error_set(err, E_IO, "%s is in use (admin.listen)", addr);
        unlink(path);
    }
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&sa, sizeof sa) == 0 && listen(fd, BACKLOG) == 0) {
        a->socket_path = unix_socket_path(a->address);
        a->daemon = MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_EPOLL, 0, NULL, NULL,
                                     on_request, a, MHD_OPTION_LISTEN_SOCKET, fd,
                                     MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS_MAX,
                                     MHD_OPTION_CONNECTION_TIMEOUT, TIMEOUT_S, MHD_OPTION_END);
    }
    if (a->daemon) return OK;
    if (fd >= 0) close(fd);
    return error_set(err, E_IO, "cannot listen on %s (admin.listen)", addr);
}

static status open_tcp(admin *a, const char *addr, error *err) {
    char host[HOST_BYTES];
    struct addrinfo *ai;
    const status e = resolve(addr, host, &ai, err);
    if (e != OK) return e;
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_EPOLL;
    if (ai->ai_family == AF_INET6) flags |= MHD_USE_IPv6;
    a->daemon = MHD_start_daemon(flags, 0, NULL, NULL, on_request, a, MHD_OPTION_SOCK_ADDR,
                                 ai->ai_addr, MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS_MAX,
                                 MHD_OPTION_PER_IP_CONNECTION_LIMIT, CONNECTIONS_A_PEER_MAX,
                                 MHD_OPTION_CONNECTION_TIMEOUT, TIMEOUT_S, MHD_OPTION_END);
    freeaddrinfo(ai);
    if (!a->daemon)
        return error_set(err, E_IO, "cannot listen on %s (admin.listen; in use?)", addr);
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(a->daemon, MHD_DAEMON_INFO_BIND_PORT);
    snprintf(a->address, sizeof a->address, flags & MHD_USE_IPv6 ? "[%s]:%u" : "%s:%u", host,
             info ? (unsigned)info->port : 0u);
    return OK;
}

status admin_open(server *s, const char *addr, admin **out, error *err) {
    admin *a = calloc(1, sizeof *a);
    if (!a) return error_set(err, E_NOMEM, "admin: out of memory");
    a->server = s;
    const status e = unix_socket_path(addr) ? open_unix(a, addr, err) : open_tcp(a, addr, err);
    if (e != OK) {
        admin_close(a);
        return e;
    }
    *out = a;
    return OK;
}

const char *admin_address(const admin *a) {
    return a->address;
}

void admin_close(admin *a) {
    if (!a) return;
    if (a->daemon) MHD_stop_daemon(a->daemon);
    if (a->socket_path) unlink(a->socket_path);
    free(a);
}
