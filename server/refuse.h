/* Every way a call can end other than OK: one table of gRPC status, stable reason and push-back,
 * and the google.rpc.Status that goes into `grpc-status-details-bin`. Thread: any. */
#ifndef INFERD_SERVER_REFUSE_H
#define INFERD_SERVER_REFUSE_H

#include <grpc/grpc.h>

#include "base/arena.h"
#include "base/status.h"
#include "server/pb.h"

typedef enum refuse_kind {
    REFUSE_NONE, /* OK */
    REFUSE_INVALID,
    REFUSE_MODEL_NOT_FOUND,
    REFUSE_SERVICE_NOT_FOUND, /* health */
    REFUSE_ID_LIVE,
    REFUSE_UNAUTHENTICATED,
    REFUSE_PERMISSION_DENIED,
    REFUSE_QUEUE_FULL,
    REFUSE_QUOTA,
    REFUSE_TOO_LARGE,
    REFUSE_LOADING,
    REFUSE_DRAINING,
    REFUSE_DEVICE_FAULT,
    REFUSE_STALLED,
    REFUSE_SLOW_CONSUMER,
    REFUSE_DEADLINE,
    REFUSE_CANCELLED,
    REFUSE_INTERNAL,
    REFUSE_UNIMPLEMENTED,
    REFUSE_KINDS
} refuse_kind;

enum { PUSHBACK_NEVER = -1, PUSHBACK_NONE = -2 };

typedef struct refuse_row {
    grpc_status_code code;
    const char *reason;  /* ErrorInfo.reason; NULL: no ErrorInfo */
    const char *message; /* the constant text when the refusal has none of its own */
    int pushback_ms;     /* default; PUSHBACK_* */
} refuse_row;
const refuse_row *refuse_get(refuse_kind k);

typedef struct violation {
    const char *field, *description;
} violation;

/* The bad fields of one request; texts live in `arena`. Past LIMIT_VIOLATIONS the rest is counted,
 * and said: details must fit into a client's default 8 KiB of metadata. */
enum { LIMIT_VIOLATIONS = 32 };
typedef struct violations {
    arena *arena;
    int n, n_more;
    violation v[LIMIT_VIOLATIONS];
} violations;
void violate(violations *v, const char *description, const char *field_fmt, ...) BASE_PRINTF(3, 4);

typedef struct refusal {
    refuse_kind kind;
    char message[256];     /* empty: the table's */
    int pushback_ms;       /* 0: the table's */
    const char *key, *val; /* ErrorInfo.metadata, or NULL: e.g. phase, id */
    const violations *bad; /* REFUSE_INVALID, or NULL */
} refusal;

/* Sets the message, cut between characters where it is too long. */
void refuse_say(refusal *r, const char *fmt, ...) BASE_PRINTF(2, 3);
/* REFUSE_INVALID whose message names the first bad field. bad: at least one, kept by reference. */
refusal refuse_invalid(const violations *bad);

grpc_status_code refuse_code(const refusal *r);
const char *refuse_message(const refusal *r);
int refuse_pushback_ms(const refusal *r); /* PUSHBACK_NONE: send none */
/* Appends the serialised google.rpc.Status. */
void refuse_details(const refusal *r, pb_writer *w);
#endif
