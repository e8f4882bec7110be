/* The server as main.c sees it: opened before the model is loaded (health says NOT_SERVING, calls
 * are answered UNAVAILABLE with reason LOADING), given the model with server_serve, drained,
 * closed. Thread: main, unless said. */
#ifndef INFERD_SERVER_SERVER_H
#define INFERD_SERVER_SERVER_H

#include "engine/chat.h"
#include "engine/engine.h"
#include "server/metrics.h"
#include "server/refuse.h"

typedef struct server server;

typedef struct server_options {
    const char *listen;        /* host:port, port 0 picks one; unix:PATH */
    const char *health_listen; /* a second, plaintext port with health only; NULL: none */
    int rpc_threads;           /* 0: one for two cores, at most 4 */
    int max_streams;           /* concurrent calls a connection */
    uint64_t max_message_bytes;
    int max_connection_age_s, keepalive_s;             /* 0: off */
    const char *tls_cert, *tls_key, *tls_client_ca;    /* files, or NULL */
    const char *tokens_file;                           /* server/auth.h; NULL: no tokens */
    int slow_reader_s, max_output_tokens, max_choices; /* max_output_tokens 0: the context */
    bool vllm_aliases;
    int tenant_kv_percent;  /* of the KV pool, for a tenant without a share of its own; 0: all */
    int queue_max_requests; /* several tenants: none may hold more than a fourth, and running */
} server_options;

/* What is served. Pointers are borrowed until server_close; strings are copied. */
typedef struct served_model {
    const tokenizer *tokenizer;
    const chat_template *chat; /* NULL: chat_problem says why chats are refused */
    const char *chat_problem;
    engine *engine;
    const char *name, *architecture, *quantization, *sha256, *tokenizer_name, *chat_source;
    size_t chat_source_len;
    const char *backend, *device, *kv_type;
    uint64_t n_parameters, file_bytes;
    int context_length, trained_context_length, n_vocab, n_embd, n_layers, n_heads, n_kv_heads,
        head_dim, max_sequences, kv_block_tokens;
    double rope_freq_base;
} served_model;

/* Binds the port(s) and starts the rpc threads. E_IO: port or TLS files; E_NOTFOUND,
 * E_FORMAT: tokens file. */
BASE_MUST_USE status server_open(const server_options *o, server **out, error *err);
const char *server_address(const server *s);        /* the bound one */
const char *server_health_address(const server *s); /* "" without server.health_listen */

/* Loading thread: 0..1. */
void server_set_progress(server *s, double fraction);
/* From now on requests are taken. m is copied. */
BASE_MUST_USE status server_serve(server *s, const served_model *m);

/* Any thread. */
bool server_ready(const server *s);
bool server_live(const server *s);   /* liveness: the watchdog has no complaint */
int server_n_calls(const server *s); /* accepted and not yet released; Watch streams count */
int server_n_generating(const server *s);
void server_set_stalled(server *s, bool stalled); /* watchdog: not ready, refuse with STALLED */
/* Watchdog: every call ends UNAVAILABLE with this reason as soon as its thread sees it. */
void server_fail(server *s, refuse_kind why);
/* Engine thread: engine_options.on_step, ctx: the server. */
void server_on_step(void *ctx, const step_report *r);
metrics *server_metrics(server *s);
/* False until there is a model. name and the like live as long as the server. */
bool server_model(const server *s, served_model *out);
void server_view(const server *s, metrics_view *out);
double server_uptime_s(const server *s);
const char *server_state_name(const server *s);

/* Re-reads certificates and tokens; what is bad stays as it was, is logged and counted. */
void server_reload(server *s);
/* About every second: takes certificates and tokens that were replaced, without a signal; measures
 * rates. */
void server_tick(server *s);

void server_begin_drain(server *s);    /* readiness falls, calls are still admitted */
void server_stop_admission(server *s); /* Generate is refused with DRAINING */
/* After it: new connections are refused, those that are there are told to go elsewhere (GOAWAY) and
 * last until their calls end. The health port stays. */
void server_stop_listening(server *s);
/* Closes the listeners, ends what is left, joins the threads. The engine must still run or be
 * stopped with engine_stop_all before. NULL is legal. */
void server_close(server *s);
#endif
