/* Reading golden data: directories, JSON, base64, hex. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "suites.h"

static int compare_names(const void *a, const void *b) {
    return strcmp((const char *)a, (const char *)b);
}

void files_path(char *out, size_t bytes, const char *dir, const char *sub, const char *name,
                const char *suffix) {
    (void)snprintf(out, bytes, "%s/%s/%s%s", dir, sub, name, suffix);
}

bool files_exist(const char *path) {
    return access(path, R_OK) == 0;
}

name_list files_list(const char *dir, const char *sub, const char *suffix) {
    char path[1024];
    name_list list = {0};
    size_t capacity = 0;
    files_path(path, sizeof path, dir, sub, "", "");
    DIR *d = opendir(path);
    if (d == NULL) return list;
    for (const struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        const size_t len = strlen(e->d_name), tail = strlen(suffix);
        if (len <= tail || len >= sizeof *list.name || strcmp(e->d_name + len - tail, suffix) != 0)
            continue;
        if (list.n == capacity) {
            capacity = capacity == 0 ? 64 : capacity * 2;
            list.name = realloc(list.name, capacity * sizeof *list.name);
            if (list.name == NULL) abort();
        }
        memset(list.name[list.n], 0, sizeof *list.name);
        memcpy(list.name[list.n++], e->d_name, len - tail);
    }
    closedir(d);
    if (list.n > 0) qsort(list.name, list.n, sizeof *list.name, compare_names);
    return list;
}

json_t *files_load_json(const char *dir, const char *sub, const char *name, const char *suffix,
                        char *why, size_t why_bytes) {
    char path[1024];
    json_error_t e;
    files_path(path, sizeof path, dir, sub, name, suffix);
    json_t *j = json_load_file(path, JSON_ALLOW_NUL, &e);
    if (j == NULL) (void)snprintf(why, why_bytes, "%s: %s", path, e.text);
    return j;
}

int32_t *files_ints(const json_t *array, int *n) {
    if (!json_is_array(array)) return NULL;
    *n = (int)json_array_size(array);
    int32_t *out = calloc((size_t)*n + 1, sizeof *out);
    for (int i = 0; out != NULL && i < *n; i++)
        out[i] = (int32_t)json_integer_value(json_array_get(array, (size_t)i));
    return out;
}

double *files_reals(const json_t *array, int *n) {
    if (!json_is_array(array)) return NULL;
    *n = (int)json_array_size(array);
    double *out = calloc((size_t)*n + 1, sizeof *out);
    for (int i = 0; out != NULL && i < *n; i++)
        out[i] = json_number_value(json_array_get(array, (size_t)i));
    return out;
}

static int base64_digit(char c) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *p = c == '\0' ? NULL : strchr(digits, c);
    return p == NULL ? -1 : (int)(p - digits);
}

float *files_floats_b64(const json_t *string, int *n) {
    if (!json_is_string(string)) return NULL;
    const char *s = json_string_value(string);
    const size_t len = json_string_length(string);
    unsigned char *bytes = calloc(len + 8, 1);
    size_t n_bytes = 0;
    unsigned bits = 0;
    int n_bits = 0;
    if (bytes == NULL) return NULL;
    for (size_t i = 0; i < len && s[i] != '='; i++) {
        const int v = base64_digit(s[i]);
        if (v < 0) {
            free(bytes);
            return NULL;
        }
        bits = bits << 6 | (unsigned)v;
        n_bits += 6;
        if (n_bits < 8) continue;
        n_bits -= 8;
        bytes[n_bytes++] = (unsigned char)(bits >> n_bits);
    }
    *n = (int)(n_bytes / sizeof(float));
    float *out = calloc((size_t)*n + 1, sizeof *out);
    if (out != NULL) memcpy(out, bytes, (size_t)*n * sizeof *out);
    free(bytes);
    return out;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : 0;
}

unsigned char *files_hex(const char *hex, size_t *n) {
    *n = strlen(hex) / 2;
    unsigned char *out = calloc(*n + 1, 1);
    for (size_t i = 0; out != NULL && i < *n; i++)
        out[i] = (unsigned char)(hex_digit(hex[2 * i]) << 4 | hex_digit(hex[2 * i + 1]));
    return out;
}

bool suite_wants(const suite_context *c, const char *name) {
    return c->filter == NULL || strstr(name, c->filter) != NULL;
}
