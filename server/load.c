#include "server/load.h"

#include <ctype.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/utf8.h"
#include "server/selftest.h"

enum { NAME_BYTES = 256, QUARTERS = 4 };

struct loader {
    const load_options *o;
    server *server;
    int signal_when_done;
    pthread_t thread;
    _Atomic bool done;
    status result;
    error err;
    int exit_code;

    gguf *file;
    tokenizer *tokenizer;
    chat_template *chat;
    weights *weights;
    engine *engine;
    backend *backend; /* the engine's once it is open */
    char name[NAME_BYTES], sha256[65], kv_type[16], chat_problem[ERROR_TEXT_MAX];
    gguf_str chat_source;
    int quarter; /* of the load that was reported last */
    int64_t start_ns;
};

/* --- progress --- */

static void on_progress(void *ctx, double fraction) {
    loader *l = ctx;
    server_set_progress(l->server, fraction);
    if (l->o->progress_bar) {
        enum { WIDTH = 40 };
        const int n = (int)(fraction * WIDTH);
        fprintf(stdout, "\rloading [%.*s%*s] %3d %%%s", n,
                "########################################", WIDTH - n, "", (int)(fraction * 100),
                fraction >= 1 ? "\n" : "");
        fflush(stdout);
        return;
    }
    const int quarter = (int)(fraction * QUARTERS);
    if (quarter <= l->quarter) return;
    l->quarter = quarter;
    log_event(LOG_INFO, "loading", LOG_INT("percent", quarter * 100 / QUARTERS));
}

/* --- steps --- */

static status check_pin(loader *l) {
    const char *pin = l->o->pin;
    if (!pin || !pin[0]) return OK;
    uint8_t want[32], got[32];
    if (!sha256_from_hex(pin, want))
        return error_set(&l->err, E_INVAL, "model.sha256: not a digest");
    const status s = gguf_sha256(l->file, got);
    if (s != OK) return error_set(&l->err, s, "%s: cannot be read", l->o->path);
    sha256_hex(got, l->sha256);
    if (!hash_equal_ct(want, got, sizeof got))
        return error_set(&l->err, E_FORMAT, "%s: SHA-256 is %s, model.sha256 says %s", l->o->path,
                         l->sha256, pin);
    return OK;
}

static void spelling_of(const tokenizer *t, int32_t id, char *out, size_t bytes) {
    size_t len = 0;
    const char *s = id >= 0 ? tokenizer_piece(t, id, true, &len) : "";
    snprintf(out, bytes, "%.*s", (int)len, s);
}

/* A template that the interpreter lacks something for does not keep the model from serving text. */
static status open_chat(loader *l) {
    bool found;
    char bos[64], eos[64];
    error err;
    gguf_str s;
    status e = gguf_get_str(l->file, "tokenizer.chat_template", &found, &s, &l->err);
    if (e != OK) return e;
    if (!found) s = (gguf_str){chat_chatml, strlen(chat_chatml)};
    l->chat_source = s;
    spelling_of(l->tokenizer, tokenizer_bos(l->tokenizer), bos, sizeof bos);
    spelling_of(l->tokenizer, tokenizer_eos(l->tokenizer), eos, sizeof eos);
    e = chat_template_open(s.s, s.len, bos, eos, &l->chat, &err);
    if (e == OK) return OK;
    if (e == E_NOMEM) return error_set(&l->err, e, "chat template: out of memory");
    snprintf(l->chat_problem, sizeof l->chat_problem, "%s", err.text);
    log_event(LOG_WARN, "chat_template_refused", LOG_STR("error", err.text));
    return OK;
}

/* Valid UTF-8 whatever the file says: clients and scrapes break on anything else. */
static void keep_name(char out[NAME_BYTES], const char *s) {
    utf8_copy(out, NAME_BYTES, s, strlen(s));
}

static void take_name(loader *l) {
    const model_info *info = weights_info(l->weights);
    const char *given = l->o->name;
    if (!given || !given[0]) given = info->name;
    if (given[0]) {
        keep_name(l->name, given);
        return;
    }
    const char *base = strrchr(l->o->path, '/');
    keep_name(l->name, base ? base + 1 : l->o->path);
    const size_t n = strlen(l->name);
    if (n > 5 && strcmp(l->name + n - 5, ".gguf") == 0) l->name[n - 5] = '\0';
}

static status open_engine(loader *l) {
    engine_options o = l->o->engine;
    model_desc desc = *weights_desc(l->weights);
    const bool gpu = strcmp(l->backend->ops->name, "cpu") != 0;
    desc.never_sampled = tokenizer_never_sampled(l->tokenizer);
    if (o.max_sequences == 0) o.max_sequences = gpu ? 256 : 64;
    if (o.max_step_tokens == 0) o.max_step_tokens = gpu ? 8192 : 512;
    o.n_eog_ids = tokenizer_eog_ids(l->tokenizer, &o.eog_ids);
    o.on_step = server_on_step;
    o.on_step_ctx = l->server;
    backend *b = l->backend;
    l->backend = NULL; /* engine_open takes it */
    const status s = engine_open(b, &desc, &o, on_progress, l, &l->engine, &l->err);
    return s == OK ? engine_start(l->engine, &l->err) : s;
}

static void log_memory(const loader *l) {
    const backend_memory *m = engine_memory(l->engine);
    log_event(LOG_INFO, "memory", LOG_UINT("weights_bytes", m->weights_bytes),
              LOG_UINT("kv_bytes", m->kv_bytes), LOG_UINT("workspace_bytes", m->workspace_bytes),
              LOG_UINT("device_bytes", m->total_bytes),
              LOG_UINT("device_free_bytes", m->free_bytes), LOG_INT("kv_blocks", m->kv_blocks));
}

static status serve(loader *l, const char *device) {
    const model_desc *d = weights_desc(l->weights);
    const model_info *info = weights_info(l->weights);
    const dtype_info *kv = dtype_get((int)engine_memory(l->engine)->kv_type);
    snprintf(l->kv_type, sizeof l->kv_type, "%s", kv ? kv->name : "");
    for (char *p = l->kv_type; *p; p++) *p = (char)tolower((unsigned char)*p);
    const engine_options *o = &l->o->engine;
    const bool gpu = strncmp(device, "CPU", 3) != 0;
    const served_model m = {.tokenizer = l->tokenizer,
                            .chat = l->chat,
                            .chat_problem = l->chat_problem,
                            .engine = l->engine,
                            .name = l->name,
                            .architecture = info->architecture,
                            .quantization = info->quantization,
                            .sha256 = l->sha256,
                            .tokenizer_name = tokenizer_name(l->tokenizer),
                            .chat_source = l->chat_source.s,
                            .chat_source_len = l->chat_source.len,
                            .backend = gpu ? "cuda" : "cpu",
                            .device = device,
                            .kv_type = l->kv_type,
                            .n_parameters = info->n_parameters,
                            .file_bytes = gguf_file_bytes(l->file),
                            .context_length = engine_context_length(l->engine),
                            .trained_context_length = info->trained_context_length,
                            .n_vocab = d->n_vocab,
                            .n_embd = d->n_embd,
                            .n_layers = d->n_layers,
                            .n_heads = d->n_heads,
                            .n_kv_heads = d->n_kv_heads,
                            .head_dim = d->head_dim,
                            .max_sequences = o->max_sequences ? o->max_sequences
                                             : gpu            ? 256
                                                              : 64,
                            .kv_block_tokens = o->kv_block_tokens,
                            .rope_freq_base = info->rope_freq_base};
    const status s = server_serve(l->server, &m);
    if (s != OK) return error_set(&l->err, s, "out of memory");
    log_event(LOG_INFO, "model", LOG_STR("name", m.name), LOG_STR("architecture", m.architecture),
              LOG_STR("quantization", m.quantization), LOG_UINT("parameters", m.n_parameters),
              LOG_INT("context_length", m.context_length), LOG_STR("backend", m.backend),
              LOG_STR("device", m.device), LOG_STR("sha256", m.sha256),
              LOG_DBL("load_ms", (double)(clock_now_ns() - l->start_ns) * 1e-6));
    return OK;
}

/* Exit code of a refusal is that of the step it came from; memory and devices are their own. */
static status load_steps(loader *l) {
    const load_options *o = l->o;
    char device[256];
    status s;
    l->exit_code = EXIT_BAD_MODEL;
    if ((s = gguf_open(o->path, &l->file, &l->err)) != OK) return s;
    if ((s = check_pin(l)) != OK) return s;
    /* The cheaper look first. */
    if ((s = weights_open(l->file, o->context_length, &l->weights, &l->err)) != OK) return s;
    if ((s = tokenizer_open(l->file, &l->tokenizer, &l->err)) != OK) return s;
    if ((s = open_chat(l)) != OK) return s;
    take_name(l);
    if (tokenizer_n_vocab(l->tokenizer) > weights_desc(l->weights)->n_vocab)
        return error_set(&l->err, E_FORMAT, "%s: the tokenizer has %d tokens, the weights %d",
                         o->path, tokenizer_n_vocab(l->tokenizer),
                         weights_desc(l->weights)->n_vocab);
    l->exit_code = EXIT_NO_DEVICE;
    if ((s = backend_open(o->backend, &o->backend_options, &l->backend, &l->err)) != OK) return s;
    snprintf(device, sizeof device, "%s", l->backend->ops->device_name(l->backend));
    l->exit_code = EXIT_BAD_MODEL;
    s = open_engine(l);
    if (s == E_NOMEM || s == E_DEVICE) l->exit_code = EXIT_NO_DEVICE;
    if (s != OK) return s;
    log_memory(l);
    s = selftest_run(l->engine, weights_desc(l->weights)->n_vocab, l->sha256, &l->err);
    if (s == E_DEVICE) l->exit_code = EXIT_NO_DEVICE;
    if (s == OK) s = gguf_check_unchanged(l->file, &l->err); /* else the weights may be zeros */
    return s == OK ? serve(l, device) : s;
}

/* A file that changed while it was read explains any other complaint about it. */
static void blame_file(loader *l) {
    error changed;
    if (l->file == NULL || gguf_check_unchanged(l->file, &changed) == OK) return;
    l->err = changed;
    l->exit_code = EXIT_BAD_MODEL;
}

static void *load_main(void *arg) {
    loader *l = arg;
    l->start_ns = clock_now_ns();
    on_progress(l, 0);
    l->result = load_steps(l);
    if (l->result != OK) blame_file(l);
    /* The backend has its own copy of everything: nothing reads the file after this. */
    weights_close(l->weights);
    l->weights = NULL;
    gguf_close(l->file);
    l->file = NULL;
    atomic_store(&l->done, true);
    kill(getpid(), l->signal_when_done);
    return NULL;
}

status load_open(const load_options *o, server *s, int signal_when_done, loader **out, error *err) {
    loader *l = calloc(1, sizeof *l);
    if (!l) return error_set(err, E_NOMEM, "out of memory");
    l->o = o;
    l->server = s;
    l->signal_when_done = signal_when_done;
    l->quarter = -1;
    if (pthread_create(&l->thread, NULL, load_main, l) != 0) {
        free(l);
        return error_set(err, E_NOMEM, "cannot start the loading thread");
    }
    *out = l;
    return OK;
}

bool load_done(loader *l, status *result, error *err, int *exit_code) {
    if (!atomic_load(&l->done)) return false;
    *result = l->result;
    *err = l->err;
    *exit_code = l->exit_code;
    return true;
}

engine *load_engine(loader *l) {
    return l->engine;
}

void load_stop_engine(loader *l) {
    if (l && atomic_load(&l->done)) engine_stop(l->engine);
}

void load_close(loader *l) {
    if (!l) return;
    pthread_join(l->thread, NULL);
    engine_close(l->engine);
    if (l->backend) l->backend->ops->close(l->backend);
    chat_template_close(l->chat);
    tokenizer_close(l->tokenizer);
    free(l);
}
