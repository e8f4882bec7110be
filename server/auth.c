#include "server/auth.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/utf8.h"

enum { LINE_BYTES = 1024 };

/* A tenant lives as long as auth: calls keep pointers to it across reloads. */
struct tenant {
    char name[TENANT_NAME_BYTES + 1];
    uint64_t id;
    tenant *next;
    pthread_mutex_t lock;                                        /* guards the rest */
    uint64_t streams_max, waiting_tokens_max, tokens_per_minute; /* 0: no limit */
    uint64_t streams, prompt_tokens;                             /* of calls that the engine has */
    uint64_t ending; /* calls whose last output is not taken yet */
    int kv_percent;  /* 0: the default */
    int account;     /* 1..LIMIT_ACCOUNTS, its own for ever */
    const auth *auth;
    double minute_tokens_left; /* a bucket that refills at tokens_per_minute */
    int64_t refilled_ns;
};

typedef struct token {
    uint8_t digest[32];
    tenant *tenant;
    time_t expires; /* 0: never */
} token;

typedef struct token_set {
    size_t n;
    token token[AUTH_TOKENS_MAX];
} token_set;

struct auth {
    _Atomic int n_tenants;             /* with a token now, or whose certificate was seen */
    _Atomic uint64_t share;            /* calls one tenant may hold, 0: no limit */
    _Atomic int kv_blocks, kv_percent; /* the pool, 0: not known yet; a tenant's share of it */
    char *path;                        /* owned; NULL: everybody is welcome */
    int64_t read_ns, seen_ns;          /* the file's times; the reloading thread's alone */
    pthread_rwlock_t lock;             /* guards the rest */
    token_set *set;                    /* owned */
    tenant *tenants;                   /* owned, grows only */
    int n_accounts;                    /* tenants ever */
};

static tenant *tenant_find(const auth *a, uint64_t id) {
    for (tenant *t = a->tenants; t; t = t->next)
        if (t->id == id) return t;
    return NULL;
}

/* 0 means nobody. */
static bool id_of(const char *name, size_t len, uint64_t *out) {
    uint8_t digest[32];
    if (sha256_of(name, len, digest) != OK) return false;
    memcpy(out, digest, sizeof *out);
    *out |= 1;
    return true;
}

/* What logs and statuses show. A certificate's URI or DNS name may hold any bytes. */
static void keep_name(char out[TENANT_NAME_BYTES + 1], const char *name, size_t len) {
    utf8_copy(out, TENANT_NAME_BYTES + 1, name, len);
}

/* Under the lock. A longer name is kept cut; it is told apart by its id. */
static tenant *tenant_of(auth *a, const char *name, size_t len) {
    uint64_t id;
    if (!id_of(name, len, &id)) return NULL;
    tenant *known = tenant_find(a, id);
    if (known) return known;
    if (a->n_accounts == LIMIT_ACCOUNTS) return NULL;
    tenant *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    if (pthread_mutex_init(&t->lock, NULL) != 0) {
        free(t);
        return NULL;
    }
    t->id = id;
    t->auth = a;
    keep_name(t->name, name, len);
    t->account = ++a->n_accounts;
    t->next = a->tenants;
    a->tenants = t;
    return t;
}

typedef struct limits {
    uint64_t streams, waiting_tokens, tokens_per_minute, kv_percent;
} limits;

static bool read_number(const char *s, uint64_t *out) {
    if (*s == '\0' || strlen(s) > 15) return false;
    *out = 0;
    for (; *s; s++) {
        if (*s < '0' || *s > '9') return false;
        *out = *out * 10 + (uint64_t)(*s - '0');
    }
    return true;
}

/* Days from civil date to the epoch; Source: Hinnant, chrono-compatible date algorithms. */
static bool read_date(const char *s, time_t *out) {
    int y, m, d, end = 0;
    if (sscanf(s, "%4d-%2d-%2d%n", &y, &m, &d, &end) != 3 || s[end] != '\0') return false;
    if (y < 1970 || m < 1 || m > 12 || d < 1 || d > 31) return false;
    y -= m <= 2;
    const int era = y / 400, yoe = y - era * 400;
    const int doy = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
    const long days = era * 146097L + yoe * 365L + yoe / 4 - yoe / 100 + doy - 719468L;
    *out = (time_t)days * 86400;
    return true;
}

static bool read_option(const char *s, limits *l, time_t *expires) {
    if (strncmp(s, "streams=", 8) == 0) return read_number(s + 8, &l->streams);
    if (strncmp(s, "waiting_tokens=", 15) == 0) return read_number(s + 15, &l->waiting_tokens);
    if (strncmp(s, "tokens_per_minute=", 18) == 0)
        return read_number(s + 18, &l->tokens_per_minute);
    if (strncmp(s, "kv_percent=", 11) == 0)
        return read_number(s + 11, &l->kv_percent) && l->kv_percent >= 1 && l->kv_percent <= 100;
    if (strncmp(s, "expires=", 8) == 0) return read_date(s + 8, expires);
    return false;
}

static bool good_name(const char *s) {
    const size_t n = strlen(s);
    if (n < 1 || n > TENANT_NAME_BYTES) return false;
    return strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == n;
}

static void apply(tenant *t, const limits *l) {
    pthread_mutex_lock(&t->lock);
    if (t->tokens_per_minute != l->tokens_per_minute)
        t->minute_tokens_left = (double)l->tokens_per_minute;
    t->streams_max = l->streams;
    t->waiting_tokens_max = l->waiting_tokens;
    t->tokens_per_minute = l->tokens_per_minute;
    t->kv_percent = (int)l->kv_percent;
    pthread_mutex_unlock(&t->lock);
}

/* What a line says: kept apart until the whole file is known to be good. */
typedef struct entry {
    uint8_t digest[32];
    char tenant[TENANT_NAME_BYTES + 1];
    limits limits;
    time_t expires;
} entry;

typedef struct entry_list {
    size_t n;
    entry entry[AUTH_TOKENS_MAX + 1]; /* the last one tells that there are too many */
} entry_list;

/* One line into *out; NULL: good, else what is wrong. A blank line leaves *used false. */
static const char *read_line(char *line, entry *out, bool *used) {
    char *save = NULL;
    *used = false;
    line[strcspn(line, "#\r\n")] = '\0';
    const char *hash = strtok_r(line, " \t", &save);
    if (!hash) return NULL;
    const char *name = strtok_r(NULL, " \t", &save);
    if (strncmp(hash, "sha256:", 7) != 0 || !sha256_from_hex(hash + 7, out->digest))
        return "expected sha256: and 64 hex digits";
    if (!name || !good_name(name)) return "expected a tenant's name of [A-Za-z0-9._-]{1,64}";
    snprintf(out->tenant, sizeof out->tenant, "%s", name);
    for (const char *option; (option = strtok_r(NULL, " \t", &save));)
        if (!read_option(option, &out->limits, &out->expires)) return "unknown or bad key=value";
    *used = true;
    return NULL;
}

static status read_file(const char *path, entry_list *list, error *err) {
    FILE *f = fopen(path, "re");
    if (!f) return error_set(err, E_NOTFOUND, "cannot read auth.tokens_file %s", path);
    char line[LINE_BYTES];
    const char *wrong = NULL;
    int n_line = 0;
    while (!wrong && fgets(line, sizeof line, f)) {
        bool used;
        n_line++;
        if (!strchr(line, '\n') && !feof(f))
            wrong = "the line is too long";
        else
            wrong = read_line(line, &list->entry[list->n], &used);
        if (wrong || !used) continue;
        if (list->n == AUTH_TOKENS_MAX)
            wrong = "too many tokens";
        else
            list->n++;
    }
    const bool broken = ferror(f) != 0;
    fclose(f);
    if (broken) return error_set(err, E_NOTFOUND, "cannot read auth.tokens_file %s", path);
    if (wrong) return error_set(err, E_FORMAT, "%s:%d: %s", path, n_line, wrong);
    if (list->n == 0) return error_set(err, E_FORMAT, "%s: no token: nobody could call", path);
    return OK;
}

/* Under the lock: the new tokens, all of them or none. */
static status adopt(auth *a, const entry_list *list, token_set *set) {
    int n_tenants = 0;
    for (size_t i = 0; i < list->n; i++) {
        const entry *e = &list->entry[i];
        token *t = &set->token[i];
        memcpy(t->digest, e->digest, sizeof t->digest);
        t->expires = e->expires;
        t->tenant = tenant_of(a, e->tenant, strlen(e->tenant));
        if (!t->tenant) return a->n_accounts == LIMIT_ACCOUNTS ? E_FULL : E_NOMEM;
    }
    set->n = list->n;
    for (size_t i = 0; i < set->n; i++) {
        bool first = true; /* line of this tenant: its limits count */
        for (size_t k = 0; k < i; k++)
            first = first && set->token[k].tenant != set->token[i].tenant;
        if (!first) continue;
        apply(set->token[i].tenant, &list->entry[i].limits);
        n_tenants++;
    }
    atomic_store(&a->n_tenants, n_tenants);
    a->set = set;
    return OK;
}

static int64_t modified_ns(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0) return 0;
    return (int64_t)st.st_mtim.tv_sec * NS_PER_S + st.st_mtim.tv_nsec;
}

bool auth_file_changed(auth *a) {
    const int64_t now = a->path ? modified_ns(a->path) : 0;
    const bool rests = now == a->seen_ns, changed = now != a->read_ns;
    a->seen_ns = now;
    return changed && rests; /* a file that is being written is left alone */
}

status auth_reload(auth *a, error *err) {
    if (!a->path) return OK;
    a->read_ns = a->seen_ns = modified_ns(a->path);
    token_set *set = calloc(1, sizeof *set), *old = NULL;
    entry_list *list = calloc(1, sizeof *list);
    status e = set && list ? read_file(a->path, list, err) /* unlocked: a disk may be slow */
                           : error_set(err, E_NOMEM, "auth: out of memory");
    if (e == OK) {
        pthread_rwlock_wrlock(&a->lock);
        old = a->set;
        e = adopt(a, list, set);
        pthread_rwlock_unlock(&a->lock);
        if (e != OK)
            error_set(err, e, "auth: %s",
                      e == E_FULL ? "too many tenants since the start" : "out of memory");
    }
    free(e == OK ? old : set);
    free(list);
    return e;
}

status auth_open(const char *path, auth **out, error *err) {
    auth *a = calloc(1, sizeof *a);
    if (!a) return error_set(err, E_NOMEM, "auth: out of memory");
    if (pthread_rwlock_init(&a->lock, NULL) != 0) {
        free(a);
        return error_set(err, E_NOMEM, "auth: out of memory");
    }
    status e = OK;
    if (path) {
        const size_t bytes = strlen(path) + 1;
        a->path = malloc(bytes);
        if (a->path) memcpy(a->path, path, bytes);
        e = a->path ? auth_reload(a, err) : error_set(err, E_NOMEM, "auth: out of memory");
    }
    if (e != OK) {
        auth_close(a);
        return e;
    }
    *out = a;
    return OK;
}

void auth_close(auth *a) {
    if (!a) return;
    for (tenant *t = a->tenants, *next; t; t = next) {
        next = t->next;
        pthread_mutex_destroy(&t->lock);
        free(t);
    }
    pthread_rwlock_destroy(&a->lock);
    free(a->set);
    free(a->path);
    free(a);
}

void auth_set_pool(auth *a, int kv_blocks, int percent) {
    atomic_store(&a->kv_percent, percent);
    atomic_store(&a->kv_blocks, kv_blocks);
}

void auth_set_share(auth *a, uint64_t calls_max) {
    atomic_store(&a->share, calls_max);
}

bool auth_required(const auth *a) {
    return a->path != NULL;
}

bool auth_check(auth *a, const char *header, size_t len, identity *out) {
    *out = (identity){.id = 0};
    if (!a->path) return true;
    static const char SCHEME[] = "Bearer ";
    const size_t skip = sizeof SCHEME - 1;
    const bool bearer = header && len > skip && memcmp(header, SCHEME, skip) == 0;
    uint8_t digest[32];
    /* The same work for every header: a missing one is compared, too, and never equal. */
    if (sha256_of(bearer ? header + skip : "", bearer ? len - skip : 0, digest) != OK) return false;
    const time_t now = time(NULL);
    const token *found = NULL;
    pthread_rwlock_rdlock(&a->lock);
    for (size_t i = 0; i < a->set->n; i++) {
        const token *t = &a->set->token[i];
        if (hash_equal_ct(t->digest, digest, sizeof digest)) found = t;
    }
    const bool good = bearer && found && (found->expires == 0 || now < found->expires);
    if (good) {
        out->id = found->tenant->id;
        out->tenant = found->tenant;
        memcpy(out->name, found->tenant->name, sizeof out->name);
    }
    pthread_rwlock_unlock(&a->lock);
    return good;
}

bool auth_certificate(auth *a, const char *name, size_t len, identity *out) {
    *out = (identity){.id = 0};
    if (len == 0 || !id_of(name, len, &out->id)) return false;
    keep_name(out->name, name, len);
    pthread_rwlock_rdlock(&a->lock);
    out->tenant = tenant_find(a, out->id);
    pthread_rwlock_unlock(&a->lock);
    if (out->tenant) return true;
    pthread_rwlock_wrlock(&a->lock);
    const int before = a->n_accounts;
    out->tenant = tenant_of(a, name, len);
    if (a->n_accounts > before) atomic_fetch_add(&a->n_tenants, 1);
    pthread_rwlock_unlock(&a->lock);
    return true;
}

/* --- limits --- */

static void refill(tenant *t, int64_t now_ns) {
    const double rate = (double)t->tokens_per_minute / 60.0; /* a second */
    if (t->refilled_ns > 0 && now_ns > t->refilled_ns)
        t->minute_tokens_left += rate * (double)(now_ns - t->refilled_ns) * 1e-9;
    if (t->minute_tokens_left > (double)t->tokens_per_minute)
        t->minute_tokens_left = (double)t->tokens_per_minute;
    t->refilled_ns = now_ns;
}

/* A client that has its last message may send the next request before we know that it has: so ended
 * calls count apart, or one stream at a time could not be kept. */
static bool holds_all(const tenant *t, uint64_t calls_max) {
    return t->streams >= calls_max || t->streams + t->ending >= 2 * calls_max;
}

static bool over_limits(const tenant *t, uint64_t prompt_tokens) {
    const uint64_t share = atomic_load(&t->auth->share);
    if (share > 0 && atomic_load(&t->auth->n_tenants) > 1 && holds_all(t, share)) return true;
    if (t->streams_max > 0 && holds_all(t, t->streams_max)) return true;
    /* Alone, a longer prompt may come: refused, it would be told to retry for ever. */
    return t->waiting_tokens_max > 0 && t->prompt_tokens > 0 &&
           t->prompt_tokens + prompt_tokens > t->waiting_tokens_max;
}

/* Blocks of the pool for t, at least one; 0: no bound. */
static int blocks_of(const tenant *t) {
    const int n = atomic_load(&t->auth->kv_blocks);
    const int percent = t->kv_percent > 0 ? t->kv_percent : atomic_load(&t->auth->kv_percent);
    if (n == 0 || percent <= 0 || percent >= 100) return 0;
    const int part = (int)((int64_t)n * percent / 100);
    return part > 0 ? part : 1;
}

/* A request larger than a whole minute's tokens is charged the minute: else it would never run. */
static status charge_minute(tenant *t, uint64_t *cost, int64_t now_ns, int *retry_ms) {
    if (t->tokens_per_minute == 0) return OK;
    refill(t, now_ns);
    if (*cost > t->tokens_per_minute) *cost = t->tokens_per_minute;
    const double missing = (double)*cost - t->minute_tokens_left;
    if (missing > 0) {
        *retry_ms = (int)(missing * 60000.0 / (double)t->tokens_per_minute) + 1;
        return E_FULL;
    }
    t->minute_tokens_left -= (double)*cost;
    return OK;
}

status tenant_admit(tenant *t, uint64_t prompt_tokens, uint64_t max_tokens, int64_t now_ns,
                    tenant_charge *out, int *retry_ms) {
    *out = (tenant_charge){.tenant = NULL};
    if (!t) return OK;
    uint64_t cost = prompt_tokens + max_tokens;
    *retry_ms = 1000;
    pthread_mutex_lock(&t->lock);
    status e = over_limits(t, prompt_tokens) ? E_FULL : OK;
    if (e == OK) e = charge_minute(t, &cost, now_ns, retry_ms);
    if (e == OK) {
        t->streams++;
        t->prompt_tokens += prompt_tokens;
        *out = (tenant_charge){.tenant = t,
                               .prompt_tokens = prompt_tokens,
                               .minute_tokens = cost,
                               .account = t->account,
                               .account_blocks_max = blocks_of(t)};
    }
    pthread_mutex_unlock(&t->lock);
    return e;
}

void tenant_end(tenant_charge *c, uint64_t used_tokens) {
    tenant *t = c->tenant;
    if (!t || c->ended) return;
    c->ended = true;
    pthread_mutex_lock(&t->lock);
    t->streams--;
    t->ending++;
    t->prompt_tokens -= c->prompt_tokens;
    if (t->tokens_per_minute > 0 && c->minute_tokens > used_tokens) {
        t->minute_tokens_left += (double)(c->minute_tokens - used_tokens);
        if (t->minute_tokens_left > (double)t->tokens_per_minute)
            t->minute_tokens_left = (double)t->tokens_per_minute;
    }
    pthread_mutex_unlock(&t->lock);
}

void tenant_release(tenant_charge *c, uint64_t used_tokens) {
    tenant *t = c->tenant;
    if (!t) return;
    tenant_end(c, used_tokens);
    pthread_mutex_lock(&t->lock);
    t->ending--;
    pthread_mutex_unlock(&t->lock);
    c->tenant = NULL;
}
