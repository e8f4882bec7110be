/* The known-answer test before READY: a fixed prompt, greedy, twice through the real engine. A
 * model whose digest is known must also give the recorded ids. Thread: main, engine started. */
#ifndef INFERD_SERVER_SELFTEST_H
#define INFERD_SERVER_SELFTEST_H

#include "engine/engine.h"

/* digest: the file's SHA-256, lower-case hex when known, or "". E_INTERNAL: not finite, not equal,
 * not as recorded; E_DEVICE; E_STATE: no answer in time. */
BASE_MUST_USE status selftest_run(engine *e, int n_vocab, const char *digest, error *err);
#endif
