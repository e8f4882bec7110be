/* From a model file to an engine that runs: file, tokenizer, chat template, weights, backend,
 * engine, known-answer test. Loading runs on a thread of its own, so that main hears signals
 * meanwhile. */
#ifndef INFERD_SERVER_LOAD_H
#define INFERD_SERVER_LOAD_H

#include "server/server.h"

typedef struct load_options {
    const char *path, *name, *pin; /* name, pin (SHA-256 in hex): NULL or "" when not given */
    const char *backend;           /* auto, cpu, cuda */
    backend_options backend_options;
    engine_options engine; /* eog_ids and on_step are filled here; max_* 0: by backend */
    int context_length;
    bool progress_bar; /* on stdout, which is a terminal */
} load_options;

typedef struct loader loader;

enum { EXIT_BAD_MODEL = 3, EXIT_NO_DEVICE = 4 };

/* Starts loading; o is borrowed until load_close. When done, `signal_when_done` is sent to the
 * process. */
BASE_MUST_USE status load_open(const load_options *o, server *s, int signal_when_done, loader **out,
                               error *err);
/* False while loading. *result OK: the server serves. Else err and *exit_code say why not. */
bool load_done(loader *l, status *result, error *err, int *exit_code);
engine *load_engine(loader *l); /* after it was done and OK */
/* The engine makes no callback after this: before server_close. NULL is legal, a load that failed
 * too. */
void load_stop_engine(loader *l);
/* After server_close. Waits for the thread. NULL is legal. */
void load_close(loader *l);
#endif
