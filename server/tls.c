#include "server/tls.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/hash.h"

enum { FILE_BYTES_MAX = 1 << 20, UNSETTLED_LOOKS_MAX = 3 };

typedef struct pems {
    char *cert, *key, *ca; /* owned, NUL-terminated */
} pems;

struct tls {
    char *cert_path, *key_path, *ca_path; /* owned; ca_path may be NULL */
    pthread_mutex_t lock;                 /* guards the rest */
    pems now;
    unsigned generation; /* of `now` */
    unsigned handed_out; /* the generation that handshakes use */
    int64_t not_after_s; /* of `now`: seconds since 1970 */

    int64_t seen_ns[3]; /* modification times at the last look; the reloading thread's, as is */
    int n_unsettled;    /* looks in a row that found a change */
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

/* A key that needs a passphrase is refused; OpenSSL would ask whoever sits at the terminal. */
static int no_passphrase(char *buffer, int bytes, int writing, void *ctx) {
    (void)buffer, (void)bytes, (void)writing, (void)ctx;
    return -1;
}

static X509 *next_cert(BIO *b) {
    return PEM_read_bio_X509(b, NULL, no_passphrase, NULL);
}

bool tls_certificate_digest(const char *pem, size_t len, char out[65]) {
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    if (len == 0 || len > FILE_BYTES_MAX) return false;
    BIO *b = BIO_new_mem_buf(pem, (int)len);
    X509 *cert = b ? next_cert(b) : NULL;
    const bool good = cert && X509_digest(cert, EVP_sha256(), digest, &n) == 1 && n == 32;
    if (good) sha256_hex(digest, out);
    X509_free(cert);
    BIO_free(b);
    ERR_clear_error();
    return good;
}

/* The last read found no further block, rather than a broken one. */
static bool read_to_the_end(void) {
    return ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
}

static bool has_only_certs(const char *pem) {
    BIO *b = BIO_new_mem_buf(pem, -1);
    int n = 0;
    for (X509 *x; b && (x = next_cert(b)); n++) X509_free(x);
    const bool good = n > 0 && read_to_the_end();
    BIO_free(b);
    ERR_clear_error();
    return good;
}

/* Seconds since 1970; 0: not readable. */
static int64_t seconds_of(const ASN1_TIME *t) {
    int days, seconds; /* from now */
    if (ASN1_TIME_diff(&days, &seconds, NULL, t) != 1) return 0;
    return (int64_t)time(NULL) + (int64_t)days * 86400 + seconds;
}

/* gRPC takes any bytes and fails at the first handshake, so what it will do then is done here.
 * NULL: good; else what is wrong. */
static const char *problem_with(const pems *p, int64_t *not_after_s) {
    const char *problem = "out of memory";
    SSL_CTX *c = SSL_CTX_new(TLS_server_method());
    BIO *certs = BIO_new_mem_buf(p->cert, -1), *key = BIO_new_mem_buf(p->key, -1);
    X509 *leaf = NULL, *link;
    EVP_PKEY *k = NULL;
    if (!c || !certs || !key) goto done;
    problem = "no certificate that OpenSSL takes";
    leaf = next_cert(certs);
    if (!leaf || SSL_CTX_use_certificate(c, leaf) != 1) goto done;
    while ((link = next_cert(certs)))
        if (SSL_CTX_add0_chain_cert(c, link) != 1) {
            X509_free(link);
            goto done;
        }
    problem = "the chain does not parse to its end";
    if (!read_to_the_end()) goto done;
    ERR_clear_error();
    problem = "no private key, or one that needs a passphrase";
    k = PEM_read_bio_PrivateKey(key, NULL, no_passphrase, NULL);
    if (!k) goto done;
    problem = "no matching certificate and key";
    if (SSL_CTX_use_PrivateKey(c, k) != 1) goto done;
    problem = "the certificate is not valid yet";
    if (X509_cmp_current_time(X509_get0_notBefore(leaf)) > 0) goto done;
    problem = "the certificate has expired";
    if (X509_cmp_current_time(X509_get0_notAfter(leaf)) < 0) goto done;
    *not_after_s = seconds_of(X509_get0_notAfter(leaf));
    problem = NULL;
done:
    EVP_PKEY_free(k);
    X509_free(leaf);
    BIO_free(key);
    BIO_free(certs);
    SSL_CTX_free(c);
    ERR_clear_error();
    return problem;
}

static status read_all(const tls *t, pems *out, int64_t *not_after_s, error *err) {
    pems p = {0};
    const char *problem = NULL;
    status e = OK;
    p.cert = read_file(t->cert_path);
    p.key = read_file(t->key_path);
    if (t->ca_path) p.ca = read_file(t->ca_path);
    if (!p.cert)
        e = error_set(err, E_IO, "server.tls.cert: cannot read %s", t->cert_path);
    else if (!p.key)
        e = error_set(err, E_IO, "server.tls.key: cannot read %s", t->key_path);
    else if (t->ca_path && !(p.ca && has_only_certs(p.ca)))
        e = error_set(err, E_IO, "server.tls.client_ca: no certificates in %s", t->ca_path);
    else if ((problem = problem_with(&p, not_after_s)))
        e = error_set(err, E_IO, "server.tls: %s and %s: %s", t->cert_path, t->key_path, problem);
    if (e != OK)
        pems_free(&p);
    else
        *out = p;
    return e;
}

static bool same(const char *a, const char *b) {
    return (!a && !b) || (a && b && !strcmp(a, b));
}

static int64_t modified_ns(const char *path) {
    struct stat st;
    if (!path || stat(path, &st) != 0) return 0;
    return (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
}

/* True: a file has another time than at the last look. */
static bool look(tls *t) {
    const char *const paths[] = {t->cert_path, t->key_path, t->ca_path};
    bool changed = false;
    for (int i = 0; i < 3; i++) {
        const int64_t now = modified_ns(paths[i]);
        changed = changed || now != t->seen_ns[i];
        t->seen_ns[i] = now;
    }
    return changed;
}

/* Certificate and key are replaced one after the other: between the two they do not match, and that
 * is no failure to report. */
bool tls_files_changed(tls *t) {
    const bool changed = look(t), due = t->n_unsettled > 0;
    if (changed && ++t->n_unsettled <= UNSETTLED_LOOKS_MAX) return false;
    t->n_unsettled = 0;
    return changed || due;
}

status tls_reload(tls *t, bool *changed, error *err) {
    pems p;
    int64_t not_after_s = 0;
    look(t); /* before reading: what is replaced from here on is seen the next time */
    t->n_unsettled = 0;
    const status e = read_all(t, &p, &not_after_s, err);
    if (e != OK) return e;
    pthread_mutex_lock(&t->lock);
    *changed = !same(p.cert, t->now.cert) || !same(p.key, t->now.key) || !same(p.ca, t->now.ca);
    pems old = p;
    if (*changed) {
        old = t->now;
        t->now = p;
        t->generation++;
        t->not_after_s = not_after_s;
    }
    pthread_mutex_unlock(&t->lock);
    pems_free(&old);
    return OK;
}

int64_t tls_not_after_s(tls *t) {
    pthread_mutex_lock(&t->lock);
    const int64_t s = t->not_after_s;
    pthread_mutex_unlock(&t->lock);
    return s;
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
    if (e == OK) e = tls_reload(t, &changed, err);
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
