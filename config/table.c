/* The keys. Ranges are the contract's (base/limits.h) or the reason is in the doc. */
#include "config/table.h"

#include <limits.h>
#include <stddef.h>
#include <string.h>

#include "base/limits.h"

#define MEMBER(m)    .offset = offsetof(config, m), .size = sizeof(((config *)0)->m)
#define RANGE(a, b)  .min = (a), .max = (b)
#define DAY_S        86400
#define BYTES_MAX    (UINT64_C(1) << 50)
#define PATH_DOC_REL " A relative path starts at the working directory."

static const config_key table[] = {
    {"server.listen", KEY_ADDR, MEMBER(server.listen), .initial = "127.0.0.1:50051",
     .doc = "Where gRPC is served: host:port (port 0 picks a free one) or unix:PATH."},
    {"server.rpc_threads", KEY_INT, MEMBER(server.rpc_threads), RANGE(0, 16), .initial = "0",
     .doc = "Threads for calls and text work, each with its own completion queue; 0: one for two "
            "cores, at most 4."},
    {"server.max_streams", KEY_INT, MEMBER(server.max_streams), RANGE(1, 65536), .initial = "1024",
     .doc = "Concurrent calls on one connection; further ones wait in the client."},
    {"server.max_message_bytes", KEY_BYTES, MEMBER(server.max_message_bytes), RANGE(1024, 64 << 20),
     .initial = "2097152",
     .doc = "Largest request; a bigger one is answered RESOURCE_EXHAUSTED. KiB and MiB may follow "
            "the number."},
    {"server.max_connection_age_s", KEY_INT, MEMBER(server.max_connection_age_s),
     RANGE(0, 30 * DAY_S), .initial = "0",
     .doc = "Ask a client to reconnect after this time, so that balancers see new servers; its "
            "calls finish. 0: never."},
    {"server.keepalive_s", KEY_INT, MEMBER(server.keepalive_s), RANGE(0, DAY_S), .initial = "20",
     .doc = "Ping a connection this often and drop it when the ping is not answered in "
            "10 s. 0: never."},
    {"server.tls.cert", KEY_PATH, MEMBER(server.tls.cert), .initial = "",
     .doc = "PEM file of the server's certificate chain; needs server.tls.key. Empty: no TLS." //
     PATH_DOC_REL},
    {"server.tls.key", KEY_PATH, MEMBER(server.tls.key), .initial = "",
     .doc = "PEM file of the certificate's private key."},
    {"server.tls.client_ca", KEY_PATH, MEMBER(server.tls.client_ca), .initial = "",
     .doc = "PEM file of the authorities that sign client certificates; when given, a client must "
            "show one (mTLS)."},
    {"server.health_listen", KEY_ADDR_OFF, MEMBER(server.health_listen), .initial = "off",
     .doc = "A second, plaintext port that serves only grpc.health.v1, for probes that cannot "
            "speak mTLS; or off."},
    {"server.drain_s", KEY_INT, MEMBER(server.drain_s), RANGE(0, DAY_S), .initial = "30",
     .doc = "After a stop signal, running calls may finish for this long; the rest then end "
            "UNAVAILABLE."},
    {"server.drain_delay_s", KEY_INT, MEMBER(server.drain_delay_s), RANGE(0, 3600), .initial = "0",
     .doc = "After a stop signal, readiness falls at once but new calls are still admitted for "
            "this long, until balancers have noticed."},

    {"admin.listen", KEY_ADDR_OFF, MEMBER(admin.listen), .initial = "127.0.0.1:9090",
     .doc = "Where /metrics, /livez, /readyz and /statusz are served over HTTP; host:port, "
            "unix:PATH or off."},

    {"auth.tokens_file", KEY_PATH, MEMBER(auth.tokens_file), .initial = "",
     .doc = "File of bearer tokens (as SHA-256) and their tenants; when given, every call needs "
            "one. Empty: no tokens."},

    {"model.path", KEY_PATH, MEMBER(model.path), .initial = "",
     .doc = "The model, a GGUF file: the only value that must be given." PATH_DOC_REL},
    {"model.name", KEY_TEXT, MEMBER(model.name), .initial = "",
     .doc = "Name under which it is served. Empty: the file's general.name, else the file name "
            "without .gguf."},
    {"model.sha256", KEY_SHA256, MEMBER(model.sha256), .initial = "",
     .doc = "64 hex digits; when given, a file with another digest is refused."},

    {"engine.backend", KEY_ENUM, MEMBER(engine.backend), .initial = "auto",
     .choices = "auto|cpu|cuda", .doc = "auto: cuda when it is built in and a device is there."},
    {"engine.device", KEY_INT, MEMBER(engine.device), RANGE(0, 63), .initial = "0",
     .doc = "Which GPU, as CUDA counts them."},
    {"engine.threads", KEY_INT, MEMBER(engine.threads), RANGE(0, LIMIT_THREADS), .initial = "0",
     .doc = "Compute threads of the CPU backend; 0: the physical cores that the process may use."},
    {"engine.context_length", KEY_INT, MEMBER(engine.context_length), RANGE(0, LIMIT_CONTEXT),
     .initial = "0", .doc = "Longest sequence (prompt and output) in tokens; 0: the model's own."},
    {"engine.max_sequences", KEY_INT, MEMBER(engine.max_sequences), RANGE(0, LIMIT_SEQUENCES),
     .initial = "0", .doc = "Sequences that run at once; 0: 64 on the CPU, 256 on a GPU."},
    {"engine.max_step_tokens", KEY_INT, MEMBER(engine.max_step_tokens), RANGE(0, LIMIT_STEP_TOKENS),
     .initial = "0", .doc = "Tokens computed in one step; 0: 512 on the CPU, 8192 on a GPU."},
    {"engine.kv_blocks", KEY_INT, MEMBER(engine.kv_blocks), RANGE(0, INT_MAX), .initial = "0",
     .doc = "Blocks in the KV cache; 0: as many as engine.kv_memory_bytes or the memory allows."},
    {"engine.kv_memory_bytes", KEY_BYTES, MEMBER(engine.kv_memory_bytes), RANGE(0, BYTES_MAX),
     .initial = "0",
     .doc = "Memory for the KV cache; KiB, MiB or GiB may follow the number. 0: the backend "
            "decides and says so in the log."},
    {"engine.kv_block_tokens", KEY_INT, MEMBER(engine.kv_block_tokens), RANGE(16, 64),
     .initial = "32", .choices = "16|32|64", .doc = "Tokens in one block of the KV cache."},
    {"engine.kv_type", KEY_ENUM, MEMBER(engine.kv_type), .initial = "auto",
     .choices = "auto|f32|f16|bf16|int8",
     .doc = "How keys and values are stored. auto: the backend's default; int8 halves the memory "
            "of f16 at a small loss."},
    {"engine.prefix_cache", KEY_BOOL, MEMBER(engine.prefix_cache), .initial = "true",
     .doc = "Keep the blocks of finished prompts for requests that begin alike."},
    {"engine.deterministic", KEY_BOOL, MEMBER(engine.deterministic), .initial = "false",
     .doc = "On a GPU: the same bits whatever else runs in the batch, at some cost. The CPU always "
            "works so."},

    {"queue.max_requests", KEY_INT, MEMBER(queue.max_requests), RANGE(1, 1000000), .initial = "256",
     .doc = "Requests that may wait; the next one is refused with push-back."},
    {"queue.max_tokens", KEY_COUNT, MEMBER(queue.max_tokens), RANGE(1, UINT64_C(1) << 40),
     .initial = "262144", .doc = "Prompt tokens that may wait; more are refused with push-back."},

    {"limits.max_output_tokens", KEY_INT, MEMBER(limits.max_output_tokens), RANGE(0, LIMIT_CONTEXT),
     .initial = "0",
     .doc = "Largest max_tokens of a request, and what max_tokens 0 means at most; 0: the context "
            "length."},
    {"limits.max_choices", KEY_INT, MEMBER(limits.max_choices), RANGE(1, LIMIT_CHOICES),
     .initial = "8", .doc = "Largest number of choices of a request."},
    {"limits.tenant_kv_percent", KEY_INT, MEMBER(limits.tenant_kv_percent), RANGE(1, 100),
     .initial = "100",
     .doc = "Largest part of the KV cache that one tenant's running requests hold together, unless "
            "the tokens file gives it its own (kv_percent=N). 100: no bound."},
    {"limits.slow_reader_s", KEY_INT, MEMBER(limits.slow_reader_s), RANGE(1, 3600), .initial = "30",
     .doc = "A call whose client takes nothing for this long ends RESOURCE_EXHAUSTED "
            "SLOW_CONSUMER."},

    {"watchdog.not_ready_s", KEY_INT, MEMBER(watchdog.not_ready_s), RANGE(1, 3600), .initial = "5",
     .doc = "With work to do and no step for this long, health says NOT_SERVING."},
    {"watchdog.exit_s", KEY_INT, MEMBER(watchdog.exit_s), RANGE(1, 3600), .initial = "30",
     .doc = "After this long the process ends with exit code 7, to be restarted."},

    {"log.level", KEY_ENUM, MEMBER(log.level), .initial = "info",
     .choices = "debug|info|warn|error",
     .doc = "Least severe event that is logged; the event "
            "ready always is."},
    {"log.format", KEY_ENUM, MEMBER(log.format), .initial = "text", .choices = "text|json",
     .doc = "text: key=value; json: one object a line."},

    {"metrics.vllm_aliases", KEY_BOOL, MEMBER(metrics.vllm_aliases), .initial = "false",
     .doc = "Also publish the vllm:* metric names that gateways and autoscalers read."},
};

enum { N_KEYS = sizeof table / sizeof *table };

const config_key *config_keys(int *n) {
    *n = N_KEYS;
    return table;
}

int config_key_find(const char *name) {
    for (int i = 0; i < N_KEYS; i++)
        if (strcmp(table[i].name, name) == 0) return i;
    return -1;
}

bool config_section_exists(const char *name) {
    const size_t len = strlen(name);
    for (int i = 0; i < N_KEYS; i++)
        if (strncmp(table[i].name, name, len) == 0 && table[i].name[len] == '.') return true;
    return false;
}

/* Levenshtein distance over two rows; both strings are short (the caller cut them). */
static int edit_distance(const char *a, const char *b) {
    enum { MAX = 64 };
    int row[MAX + 1];
    const int len_b = (int)strlen(b);
    if (len_b > MAX || strlen(a) > MAX) return MAX;
    for (int j = 0; j <= len_b; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= len_b; j++) {
            const int substitute = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            int best = row[j] < row[j - 1] ? row[j] : row[j - 1];
            row[j] = best + 1 < substitute ? best + 1 : substitute;
        }
    }
    return row[len_b];
}

const char *config_key_nearest(const char *name) {
    const char *best = NULL;
    int best_distance = 4; /* farther than three typing errors is no help */
    for (int i = 0; i < N_KEYS; i++) {
        const char *last = strrchr(table[i].name, '.') + 1; /* the section may be what was wrong */
        int d = edit_distance(name, table[i].name);
        if (strcmp(name, last) == 0) d = 1;
        if (d < best_distance) best = table[i].name, best_distance = d;
    }
    return best;
}
