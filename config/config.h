/* The configuration: a plain struct, filled once at start from (strongest first) the command line,
 * the environment, a YAML file and the defaults of one table (config/table.c). After config_load
 * every value is within its range. Only server/main.c sees this header; other modules get their own
 * option structs. Thread: main. */
#ifndef INFERD_CONFIG_CONFIG_H
#define INFERD_CONFIG_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

enum {
    CONFIG_ADDR_MAX = 256,  /* `host:port`, `[v6]:port`, `unix:PATH`; NUL included */
    CONFIG_PATH_MAX = 4096, /* NUL included */
    CONFIG_NAME_MAX = 256
};

typedef enum config_backend {
    CONFIG_BACKEND_AUTO,
    CONFIG_BACKEND_CPU,
    CONFIG_BACKEND_CUDA
} config_backend;
typedef enum config_kv_type {
    CONFIG_KV_AUTO,
    CONFIG_KV_F32,
    CONFIG_KV_F16,
    CONFIG_KV_BF16,
    CONFIG_KV_INT8
} config_kv_type;
typedef enum config_log_level { /* as base/log.h */
                                CONFIG_LOG_DEBUG,
                                CONFIG_LOG_INFO,
                                CONFIG_LOG_WARN,
                                CONFIG_LOG_ERROR
} config_log_level;
typedef enum config_log_format { CONFIG_LOG_TEXT, CONFIG_LOG_JSON } config_log_format;

/* Strings are empty when not given. An address is never empty; `off` where the key allows it. What
 * each key means, with its range, is the table's doc: `inferd --print-config`. */
typedef struct config {
    struct {
        char listen[CONFIG_ADDR_MAX];
        int rpc_threads; /* 0: one for two cores, at most 4 */
        int max_streams; /* concurrent calls a connection */
        uint64_t max_message_bytes;
        int max_connection_age_s; /* 0: no limit */
        int keepalive_s;          /* 0: off */
        struct {
            char cert[CONFIG_PATH_MAX], key[CONFIG_PATH_MAX], client_ca[CONFIG_PATH_MAX];
        } tls;
        char health_listen[CONFIG_ADDR_MAX]; /* or off */
        int drain_s, drain_delay_s;
    } server;
    struct {
        char listen[CONFIG_ADDR_MAX]; /* or off */
    } admin;
    struct {
        char tokens_file[CONFIG_PATH_MAX];
    } auth;
    struct {
        char path[CONFIG_PATH_MAX], name[CONFIG_NAME_MAX];
        char sha256[65]; /* 64 hex digits, or empty */
    } model;
    struct {
        config_backend backend;
        int device, threads;
        int context_length;       /* 0: the model's */
        int max_sequences;        /* 0: 64 on the CPU, 256 on a GPU */
        int max_step_tokens;      /* 0: 512 on the CPU, 8192 on a GPU */
        int kv_blocks;            /* 0: from memory */
        uint64_t kv_memory_bytes; /* 0: the backend's default */
        int kv_block_tokens;      /* 16, 32 or 64 */
        config_kv_type kv_type;
        bool prefix_cache, deterministic;
    } engine;
    struct {
        int max_requests;
        uint64_t max_tokens;
    } queue;
    struct {
        int max_output_tokens; /* 0: the context length */
        int max_choices, tenant_kv_percent, slow_reader_s;
    } limits;
    struct {
        int not_ready_s, exit_s;
    } watchdog;
    struct {
        config_log_level level;
        config_log_format format;
    } log;
    struct {
        bool vllm_aliases;
    } metrics;
} config;

typedef enum config_action {
    CONFIG_SERVE,   /* model.path is given */
    CONFIG_CHECK,   /* --check-config: say that it is good, exit 0 */
    CONFIG_PRINT,   /* --print-config: config_print to stdout, exit 0 */
    CONFIG_VERSION, /* --version */
    CONFIG_HELP     /* --help: config_help to stdout, exit 0 */
} config_action;

/* Reads everything: arguments, environment (envp: NULL-terminated `NAME=value`), file. On any
 * refusal returns not OK and err says where (file:line, variable or flag), which key and why: exit
 * code 2. --help and --version read no file and win over whatever stands behind them. */
BASE_MUST_USE status config_load(int argc, char *const argv[], char *const envp[], config *out,
                                 config_action *action, error *err);

/* Every key with its doc as a comment, as YAML that config_load reads back to the same values. No
 * key holds a secret itself (tokens and private keys are named by file), so nothing is masked. */
void config_print(const config *c, FILE *out);
/* The table of keys in Markdown (README). */
void config_print_markdown(FILE *out);
void config_help(FILE *out);
#endif
