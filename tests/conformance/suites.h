/* The five suites. Each reads DIR/<suite>/, adds rows to the report, and says by a SKIP row what it
 * could not run. */
#ifndef INFERD_TESTS_CONFORMANCE_SUITES_H
#define INFERD_TESTS_CONFORMANCE_SUITES_H

#include <jansson.h>
#include <stdint.h>

#include "base/status.h"
#include "report.h"

typedef struct suite_context {
    const char *goldens; /* directory */
    const char *backend; /* by name */
    const char *model;   /* SmolLM2 file, or NULL */
    const char *filter;  /* only cases whose name contains it, or NULL */
    int threads;
    int n_draws; /* per sampling case */
    bool cpu;    /* the backend is the reference: float32 limits, bits must agree */
    report *report;
} suite_context;

void suite_models(const suite_context *c);
void suite_tokenizer(const suite_context *c);
void suite_smollm2(const suite_context *c);
void suite_sampling(const suite_context *c);
void suite_chat(const suite_context *c);

/* files.c. Fatal only for the caller's case: NULL with *why filled. */
typedef struct name_list {
    char (*name)[96]; /* owned, sorted, without the suffix */
    size_t n;
} name_list;
/* Names in DIR/sub that end with suffix. */
name_list files_list(const char *dir, const char *sub, const char *suffix);
json_t *files_load_json(const char *dir, const char *sub, const char *name, const char *suffix,
                        char *why, size_t why_bytes);
void files_path(char *out, size_t bytes, const char *dir, const char *sub, const char *name,
                const char *suffix);
bool files_exist(const char *path);
/* Integers of a JSON array; owned by the caller; NULL if it is none. */
int32_t *files_ints(const json_t *array, int *n);
double *files_reals(const json_t *array, int *n);
/* Little-endian float32 in base64. */
float *files_floats_b64(const json_t *string, int *n);
/* Bytes from hex. */
unsigned char *files_hex(const char *hex, size_t *n);
bool suite_wants(const suite_context *c, const char *name);
#endif
