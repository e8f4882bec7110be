/* A backend around a backend, whose n-th call of one op goes wrong: how the engine, the watchdog
 * and the server learn to behave when a device breaks. Not part of a release build. */
#include "kernels/backend.h"

#ifdef INFERD_FAULTS

#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef enum fault_op {
    OP_BEGIN_STEP,
    OP_EMBED,
    OP_QKV,
    OP_ATTENTION,
    OP_ATTN_OUTPUT,
    OP_GATE_UP,
    OP_DOWN,
    OP_HEAD,
    OP_SAMPLE,
    OP_END_STEP,
    OP_WAIT_STEP,
    N_OPS
} fault_op;

static const char *const OP_NAMES[N_OPS] = {"begin_step",  "embed",    "qkv",      "attention",
                                            "attn_output", "gate_up",  "down",     "head",
                                            "sample",      "end_step", "wait_step"};

typedef enum fault_kind { KIND_FAIL, KIND_HANG, KIND_NAN } fault_kind;

typedef struct fault_backend {
    backend base;
    struct backend_ops ops; /* a copy: name and pipeline depth are the inner one's */
    backend *inner;         /* owned */
    fault_op op;
    fault_kind kind;
    long left;   /* calls until the fault */
    bool broken; /* after KIND_FAIL */
} fault_backend;

static fault_backend *self(backend *b) {
    return (fault_backend *)b;
}

/* True when this call is the one that goes wrong by being not finite. */
static bool strike(fault_backend *f, fault_op op, status *s) {
    *s = f->broken ? E_DEVICE : OK;
    if (f->broken || op != f->op || f->left == 0 || --f->left > 0) return false;
    if (f->kind == KIND_NAN) return true;
    while (f->kind == KIND_HANG) nanosleep(&(struct timespec){.tv_sec = 3600}, NULL);
    f->broken = true;
    *s = E_DEVICE;
    return false;
}

/* An op without and one with a layer. */
#define FORWARD(name, op)                                                                          \
    static status fault_##name(backend *b) {                                                       \
        status s;                                                                                  \
        (void)strike(self(b), op, &s);                                                             \
        return s != OK ? s : self(b)->inner->ops->name(self(b)->inner);                            \
    }
#define FORWARD_LAYER(name, op)                                                                    \
    static status fault_##name(backend *b, int layer) {                                            \
        status s;                                                                                  \
        (void)strike(self(b), op, &s);                                                             \
        return s != OK ? s : self(b)->inner->ops->name(self(b)->inner, layer);                     \
    }
FORWARD(embed, OP_EMBED)
FORWARD_LAYER(qkv, OP_QKV)
FORWARD_LAYER(attention, OP_ATTENTION)
FORWARD_LAYER(attn_output, OP_ATTN_OUTPUT)
FORWARD_LAYER(gate_up, OP_GATE_UP)
FORWARD_LAYER(down, OP_DOWN)
FORWARD(head, OP_HEAD)
FORWARD(sample, OP_SAMPLE)
FORWARD(end_step, OP_END_STEP)
#undef FORWARD
#undef FORWARD_LAYER

static status fault_begin_step(backend *b, const step *s) {
    status st;
    (void)strike(self(b), OP_BEGIN_STEP, &st);
    return st != OK ? st : self(b)->inner->ops->begin_step(self(b)->inner, s);
}

static status fault_wait_step(backend *b, sampled *out) {
    fault_backend *f = self(b);
    status s;
    const bool nan = strike(f, OP_WAIT_STEP, &s);
    if (s != OK) return s;
    s = f->inner->ops->wait_step(f->inner, out);
    if (s == OK && nan) {
        out[0].token = -1;
        out[0].finite = false;
    }
    return s;
}

static status fault_load(backend *b, const model_desc *m, backend_progress *progress, void *ctx,
                         error *err) {
    return self(b)->inner->ops->load(self(b)->inner, m, progress, ctx, err);
}

static status fault_reserve(backend *b, const backend_limits *want, backend_memory *got,
                            error *err) {
    return self(b)->inner->ops->reserve(self(b)->inner, want, got, err);
}

static status fault_read_logits(backend *b, float *out, size_t out_floats) {
    return self(b)->inner->ops->read_logits(self(b)->inner, out, out_floats);
}

static const char *fault_device_name(const backend *b) {
    const backend *inner = ((const fault_backend *)b)->inner;
    return inner->ops->device_name(inner);
}

static void fault_close(backend *b) {
    if (b == NULL) return;
    self(b)->inner->ops->close(self(b)->inner);
    free(b);
}

/* "OP:N:KIND" into f; false when it is not one. */
static bool parse(const char *spec, fault_backend *f) {
    const char *colon = strchr(spec, ':');
    if (colon == NULL) return false;
    const size_t n = (size_t)(colon - spec);
    int op = 0;
    while (op < N_OPS && !(strlen(OP_NAMES[op]) == n && memcmp(OP_NAMES[op], spec, n) == 0)) op++;
    char *end = NULL;
    f->left = strtol(colon + 1, &end, 10);
    if (op == N_OPS || end == colon + 1 || f->left < 1 || *end != ':') return false;
    f->op = (fault_op)op;
    if (strcmp(end + 1, "fail") == 0) {
        f->kind = KIND_FAIL;
    } else if (strcmp(end + 1, "hang") == 0) {
        f->kind = KIND_HANG;
    } else if (strcmp(end + 1, "nan") == 0 && f->op == OP_WAIT_STEP) {
        f->kind = KIND_NAN;
    } else {
        return false;
    }
    return true;
}

status backend_fault_wrap(backend *inner, const char *spec, backend **out, error *err) {
    fault_backend *f = calloc(1, sizeof *f);
    if (f == NULL || !parse(spec, f)) {
        const status s = f == NULL
                             ? error_set(err, E_NOMEM, "fault injection: %zu bytes", sizeof *f)
                             : error_set(err, E_INVAL,
                                         "fault \"%s\": not OP:N:fail, OP:N:hang "
                                         "or wait_step:N:nan",
                                         spec);
        free(f);
        inner->ops->close(inner);
        return s;
    }
    f->inner = inner;
    f->ops = *inner->ops;
    f->ops.load = fault_load;
    f->ops.reserve = fault_reserve;
    f->ops.begin_step = fault_begin_step;
    f->ops.replay = NULL; /* so that every op is seen */
    f->ops.embed = fault_embed;
    f->ops.qkv = fault_qkv;
    f->ops.attention = fault_attention;
    f->ops.attn_output = fault_attn_output;
    f->ops.gate_up = fault_gate_up;
    f->ops.down = fault_down;
    f->ops.head = fault_head;
    f->ops.sample = fault_sample;
    f->ops.end_step = fault_end_step;
    f->ops.wait_step = fault_wait_step;
    f->ops.read_logits = fault_read_logits;
    f->ops.device_name = fault_device_name;
    f->ops.close = fault_close;
    f->base.ops = &f->ops;
    *out = &f->base;
    return OK;
}

#else
typedef int backend_fault_is_not_built; /* C wants a declaration in every file */
#endif
