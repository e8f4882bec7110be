#include "server/tls.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_BYTES_MAX = 1 << 20 };

typedef struct pems {
    char *cert, *key, *ca; /* owned, NUL-terminated */
} pems;

struct tls {
    char *cert_path, *key_path, *ca_path; /* owned; ca_path may be NULL */
    pthread_mutex_t lock;                 /* guards the rest */
    pems now;
    unsigned generation; /* of `now` */
    int64_t seen_ns[3];  /* modification times at the last look; tls_files_changed only */
    unsigned handed_out; /* the generation that handshakes use */
};

static char *duplicate(const char *s) {
    const size_t bytes = strlen(s) + 1;
    char *p = malloc(bytes);
    if (p) memcpy(p, s, bytes);
    return p;
}

static void pems_free(pems *p) {
    free(p->cert);
    if (p->key) {
        volatile char *k = p->key; /* the key does not stay in freed memory */
        for (size_t n = strlen(p->key); n > 0; n--) *k++ = 0;
    }
    free(p->key);
    free(p->ca);
    *p = (pems){0};
}

/* NULL: unreadable, empty, too large, or with a NUL. */
static char *read_file(const char *path) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return NULL;
    char *text = malloc(FILE_BYTES_MAX + 1);
    size_t n = 0;
    ssize_t got = 0;
    while (text && n < FILE_BYTES_MAX && (got = read(fd, text + n, FILE_BYTES_MAX - n)) > 0)
        n += (size_t)got;
    close(fd);
    if (!text || got < 0 || n == 0 || n == FILE_BYTES_MAX || memchr(text, 0, n)) {
        free(text);
        return NULL;
    }
    text[n] = '\0';
    return text;
}

static X509 *parse_cert(const char *pem) {
    BIO *b = BIO_new_mem_buf(pem, -1);
    X509 *x = b ? PEM_read_bio_X509(b, NULL, NULL, NULL) : NULL;
    BIO_free(b);
    return x;
}

/* gRPC takes any bytes and fails at the first handshake: so they are checked here. */
static bool pair_matches(const pems *p) {
    X509 *x = parse_cert(p->cert);
    BIO *b = BIO_new_mem_buf(p->key, -1);
    EVP_PKEY *k = b ? PEM_read_bio_PrivateKey(b, NULL, NULL, NULL) : NULL;
    const bool good = x && k && X509_check_private_key(x, k) == 1;
    EVP_PKEY_free(k);
    BIO_free(b);
    X509_free(x);
    ERR_clear_error();
    return good;
}

static status read_all(const tls *t, pems *out, error *err) {
    pems p = {0};
    status e = OK;
    p.cert = read_file(t->cert_path);
    p.key = read_file(t->key_path);
    if (t->ca_path) p.ca = read_file(t->ca_path);
    X509 *ca = p.ca ? parse_cert(p.ca) : NULL;
    if (!p.cert)
        e = error_set(err, E_IO, "server.tls.cert: cannot read %s", t->cert_path);
    else if (!p.key)
        e = error_set(err, E_IO, "server.tls.key: cannot read %s", t->key_path);
    else if (t->ca_path && !ca)
        e = error_set(err, E_IO, "server.tls.client_ca: no certificate in %s", t->ca_path);
    else if (!pair_matches(&p))
        e = error_set(err, E_IO, "server.tls: %s and %s are no matching certificate and key",
                      t->cert_path, t->key_path);
    X509_free(ca);
    ERR_clear_error();
    if (e != OK)
        pems_free(&p);
    else
        *out = p;
    return e;
}

static bool same(const char *a, const char *b) {
    return (!a && !b) || (a && b && !strcmp(a, b));
}

status tls_reload(tls *t, bool *changed, error *err) {
    pems p;
    const status e = read_all(t, &p, err);
    if (e != OK) return e;
    pthread_mutex_lock(&t->lock);
    *changed = !same(p.cert, t->now.cert) || !same(p.key, t->now.key) || !same(p.ca, t->now.ca);
    pems old = p;
    if (*changed) {
        old = t->now;
        t->now = p;
        t->generation++;
    }
    pthread_mutex_unlock(&t->lock);
    pems_free(&old);
    return OK;
}

static int64_t modified_ns(const char *path) {
    struct stat st;
    if (!path || stat(path, &st) != 0) return 0;
    return (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
}

bool tls_files_changed(tls *t) {
    const char *const paths[] = {t->cert_path, t->key_path, t->ca_path};
    bool changed = false;
    for (int i = 0; i < 3; i++) {
        const int64_t now = modified_ns(paths[i]);
        changed = changed || now != t->seen_ns[i];
        t->seen_ns[i] = now;
    }
    return changed;
}

status tls_open(const char *cert, const char *key, const char *client_ca, tls **out, error *err) {
    tls *t = calloc(1, sizeof *t);
    if (!t) return error_set(err, E_NOMEM, "tls: out of memory");
    pthread_mutex_init(&t->lock, NULL); /* cannot fail with default attributes on Linux */
    t->cert_path = duplicate(cert);
    t->key_path = duplicate(key);
    t->ca_path = client_ca ? duplicate(client_ca) : NULL;
    status e = t->cert_path && t->key_path && (!client_ca || t->ca_path)
                   ? OK
                   : error_set(err, E_NOMEM, "tls: out of memory");
    bool changed;
    if (e == OK) {
        tls_files_changed(t); /* remembers the times before the files are read */
        e = tls_reload(t, &changed, err);
    }
    if (e != OK) {
        tls_close(t);
        return e;
    }
    *out = t;
    return OK;
}

void tls_close(tls *t) {
    if (!t) return;
    pems_free(&t->now);
    free(t->cert_path);
    free(t->key_path);
    free(t->ca_path);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

/* Called by core for every handshake, under its lock: compares a number, and seldom builds. */
static grpc_ssl_certificate_config_reload_status fetch(void *ctx,
                                                       grpc_ssl_server_certificate_config **out) {
    tls *t = ctx;
    grpc_ssl_certificate_config_reload_status r = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    pthread_mutex_lock(&t->lock);
    if (t->handed_out != t->generation) {
        const grpc_ssl_pem_key_cert_pair pair = {t->now.key, t->now.cert};
        /* NULL roots abort core 1.51: our own certificate stands in, and nobody is asked for one.
         */
        *out = grpc_ssl_server_certificate_config_create(t->now.ca ? t->now.ca : t->now.cert, &pair,
                                                         1);
        t->handed_out = t->generation;
        r = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
    }
    pthread_mutex_unlock(&t->lock);
    return r;
}

grpc_server_credentials *tls_credentials(tls *t) {
    return grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            t->ca_path ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                       : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            fetch, t));
}
