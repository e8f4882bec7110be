/* Who calls: bearer tokens mapped to tenants.
 *
 * The tokens file has one line a token; '#' starts a comment:
 *
 *   sha256:<64 hex digits of the token's SHA-256> <tenant> [key=value]...
 *
 *   streams=N             Generate calls at a time; as many again may be through but for their last
 *                         output, which the client has not taken yet
 *   waiting_tokens=N      prompt tokens of its waiting and running calls; one alone may have more
 *   tokens_per_minute=N   prompt + output tokens; max_tokens is charged at admission, the unused
 *                         rest given back
 *   kv_percent=N          of the KV pool's blocks, for what it runs; 1..100, without it the
 *                         default of limits.tenant_kv_percent
 *   expires=YYYY-MM-DD    the token is refused from that day on (UTC)
 *
 * A tenant may have several tokens; its limits are those of its first line. The file holds no
 * secret: `printf %s TOKEN | sha256sum` makes a line. When a tokens file is configured every method
 * of the main port needs a valid token, health and reflection too (probes use
 * server.health_listen). Thread: auth_check any; auth_reload and auth_file_changed one at a
 * time. */
#ifndef INFERD_SERVER_AUTH_H
#define INFERD_SERVER_AUTH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct auth auth;
typedef struct tenant tenant;

enum { TENANT_NAME_BYTES = 64, AUTH_TOKENS_MAX = 1024 };

typedef struct identity {
    uint64_t id;                      /* 0: nobody in particular (no credentials configured) */
    char name[TENANT_NAME_BYTES + 1]; /* for logs */
    tenant *tenant;                   /* limits and usage; NULL: none. Lives as long as auth */
} identity;

/* path NULL: everybody is welcome. E_NOTFOUND: unreadable; E_FORMAT with line number. */
BASE_MUST_USE status auth_open(const char *path, auth **out, error *err);
void auth_close(auth *a); /* NULL is legal */
/* On any error the old tokens stay, and with them the limits of their tenants. E_FULL: more than
 * LIMIT_ACCOUNTS tenants since the start. */
BASE_MUST_USE status auth_reload(auth *a, error *err);
/* To be asked about every second: the file is another than the one last read, or tried, and was the
 * same at the last look. */
bool auth_file_changed(auth *a);
bool auth_required(const auth *a);
/* With several tenants, none may hold more calls than this: the queue has room for the others. */
void auth_set_share(auth *a, uint64_t calls_max);

/* The pool that shares are of, and the share of a tenant without one of its own. Before it is set
 * no tenant is bounded. */
void auth_set_pool(auth *a, int kv_blocks, int percent);

/* header: the value of `authorization`, or NULL. Compares against every token, in constant time. */
bool auth_check(auth *a, const char *header, size_t len, identity *out);
/* Without tokens, under mTLS: name is the client certificate's (server/call.c says which): the
 * tenant, with a turn, a share of the queue and of the KV blocks like others, and no limits of its
 * own. After LIMIT_ACCOUNTS names further ones have no tenant: they share one turn. False: there is
 * no identity, and so the call must be refused. Any thread. */
BASE_MUST_USE bool auth_certificate(auth *a, const char *name, size_t len, identity *out);

/* What one Generate call takes from its tenant's limits. */
typedef struct tenant_charge {
    tenant *tenant; /* NULL: nothing was charged */
    uint64_t prompt_tokens, minute_tokens;
    int account, account_blocks_max; /* for engine_request */
    bool ended;                      /* tenant_end was called */
} tenant_charge;
/* E_FULL: a limit is reached; *retry_ms says when to come again. t NULL: OK, and account 0. */
BASE_MUST_USE status tenant_admit(tenant *t, uint64_t prompt_tokens, uint64_t max_tokens,
                                  int64_t now_ns, tenant_charge *out, int *retry_ms);
/* The engine is done with the call: used_tokens of prompt and output were really used. The call's
 * last output may still wait for its reader. */
void tenant_end(tenant_charge *c, uint64_t used_tokens);
/* The call is gone. Without tenant_end before, does that, too. */
void tenant_release(tenant_charge *c, uint64_t used_tokens);
#endif
