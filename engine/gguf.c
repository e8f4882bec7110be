/* Opening and closing: mapped files, parts of a split model, the digest. Files are mapped, so that
 * start-up touches only the header; base/mapping.h says what happens when one is truncated
 * meanwhile. */
#include "engine/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "engine/gguf_priv.h"

enum { PATH_BYTES_MAX = 4096 };

static status add_part(gguf *g, gguf_part part) {
    gguf_part *parts = realloc(g->parts, ((size_t)g->n_parts + 1) * sizeof *parts);
    if (parts == NULL) return E_NOMEM;
    g->parts = parts;
    g->parts[g->n_parts++] = part;
    return OK;
}

static void part_close(gguf_part *part) {
    mapping_close(&part->file);
    free(part->path);
}

/* Maps and parses one file; its keys go to *meta. */
static status open_part(gguf *g, const char *path, gguf_meta *meta, error *err) {
    gguf_part part = {0};
    error changed;
    status s = mapping_open(path, &part.file, err);
    if (s != OK) return s;
    part.data = part.file.data;
    part.bytes = part.file.bytes;
    part.path = strdup(path);
    s = part.path == NULL ? E_NOMEM : add_part(g, part);
    if (s != OK) {
        part_close(&part);
        return error_set(err, s, "%s: parts", path);
    }
    s = gguf_parse_part(g, &part, path, meta, err);
    if (mapping_check(&part.file, path, &changed) != OK) { /* this explains any other complaint */
        *err = changed;
        s = changed.code;
    }
    return s;
}

/* "PREFIX-00001-of-00003.gguf" -> prefix length; 0 if the name has another form. */
static size_t split_prefix(const char *path, unsigned *no, unsigned *count) {
    static const char form[] = "-00000-of-00000.gguf";
    const size_t len = strlen(path), tail = sizeof form - 1;
    if (len <= tail || len >= PATH_BYTES_MAX) return 0;
    const char *t = path + len - tail;
    *no = *count = 0;
    for (size_t i = 0; i < tail; i++) {
        if (form[i] != '0') {
            if (t[i] != form[i]) return 0;
            continue;
        }
        if (t[i] < '0' || t[i] > '9') return 0;
        unsigned *n = i < 6 ? no : count;
        *n = *n * 10 + (unsigned)(t[i] - '0');
    }
    return len - tail;
}

/* Key `split.no` must be `no`, `split.count` must be `count`. */
static status check_part(const gguf_meta *m, const char *path, uint64_t no, uint64_t count,
                         error *err) {
    uint64_t v = 0;
    bool found;
    status s = gguf_meta_get_u64(m, "split.no", &found, &v, err);
    if (s != OK) return s;
    if (!found || v != no)
        return error_set(err, E_FORMAT, "%s: split.no is not %llu: name the first part", path,
                         (unsigned long long)no);
    s = gguf_meta_get_u64(m, "split.count", &found, &v, err);
    if (s != OK) return s;
    if (!found || v != count)
        return error_set(err, E_FORMAT, "%s: split.count is not %llu", path,
                         (unsigned long long)count);
    return OK;
}

static status open_other_parts(gguf *g, const char *path, uint64_t count, error *err) {
    unsigned no_in_name, count_in_name;
    const size_t prefix = split_prefix(path, &no_in_name, &count_in_name);
    if (count > GGUF_PARTS_MAX)
        return error_set(err, E_UNSUPPORTED, "%s: split.count %llu is above %d", path,
                         (unsigned long long)count, GGUF_PARTS_MAX);
    if (prefix == 0 || no_in_name != 1 || count_in_name != count)
        return error_set(err, E_FORMAT,
                         "%s: part of a split model of %llu: expected PREFIX-00001-of-%05u.gguf",
                         path, (unsigned long long)count, (unsigned)count);
    status s = check_part(&g->meta, path, 0, count, err);
    for (unsigned no = 1; no < count && s == OK; no++) {
        char part_path[PATH_BYTES_MAX];
        gguf_meta meta = {0};
        (void)snprintf(part_path, sizeof part_path, "%.*s-%05u-of-%05u.gguf", (int)prefix, path,
                       no + 1, (unsigned)count);
        s = open_part(g, part_path, &meta, err);
        if (s == OK) s = check_part(&meta, part_path, no, count, err);
        gguf_meta_deinit(&meta);
    }
    return s;
}

/* A file that says it is one part of several. */
static status open_split(gguf *g, const char *path, error *err) {
    uint64_t count = 0, total = 0;
    bool found;
    status s = gguf_meta_get_u64(&g->meta, "split.count", &found, &count, err);
    if (s != OK || !found || count <= 1) return s;
    if (path == NULL) return error_set(err, E_UNSUPPORTED, "memory: one part of a split model");
    s = open_other_parts(g, path, count, err);
    if (s != OK) return s;
    s = gguf_meta_get_u64(&g->meta, "split.tensors.count", &found, &total, err);
    if (s == OK && found && total != (uint64_t)g->n_tensors)
        s = error_set(err, E_FORMAT, "%s: split.tensors.count %llu, but the parts hold %d", path,
                      (unsigned long long)total, g->n_tensors);
    return s;
}

static gguf *new_gguf(error *err) {
    gguf *g = calloc(1, sizeof *g);
    if (g == NULL) {
        (void)error_set(err, E_NOMEM, "gguf: %zu bytes", sizeof *g);
        return NULL;
    }
    name_table_init(&g->tensor_names);
    return g;
}

status gguf_open(const char *path, gguf **out, error *err) {
    error unused;
    if (err == NULL) err = &unused;
    gguf *g = new_gguf(err);
    if (g == NULL) return E_NOMEM;
    status s = open_part(g, path, &g->meta, err);
    if (s == OK) s = open_split(g, path, err);
    if (s != OK) {
        gguf_close(g);
        return s;
    }
    *out = g;
    return OK;
}

status gguf_open_memory(const void *data, size_t bytes, gguf **out, error *err) {
    if ((uintptr_t)data % GGUF_ALIGNMENT_MIN != 0)
        return error_set(err, E_INVAL, "memory: not aligned to %d bytes", GGUF_ALIGNMENT_MIN);
    gguf *g = new_gguf(err);
    if (g == NULL) return E_NOMEM;
    const gguf_part part = {.data = data, .bytes = bytes};
    status s = add_part(g, part);
    if (s != OK) (void)error_set(err, s, "memory: parts");
    if (s == OK) s = gguf_parse_part(g, &part, "memory", &g->meta, err);
    if (s == OK) s = open_split(g, NULL, err);
    if (s != OK) {
        gguf_close(g);
        return s;
    }
    *out = g;
    return OK;
}

void gguf_close(gguf *g) {
    if (g == NULL) return;
    gguf_meta_deinit(&g->meta);
    name_table_deinit(&g->tensor_names);
    free(g->tensors);
    for (int i = 0; i < g->n_parts; i++) part_close(&g->parts[i]);
    free(g->parts);
    free(g);
}

status gguf_check_unchanged(const gguf *g, error *err) {
    for (int i = 0; i < g->n_parts; i++) {
        if (g->parts[i].path == NULL) continue;
        const status s = mapping_check(&g->parts[i].file, g->parts[i].path, err);
        if (s != OK) return s;
    }
    return OK;
}

uint64_t gguf_file_bytes(const gguf *g) {
    uint64_t bytes = 0;
    for (int i = 0; i < g->n_parts; i++) bytes += g->parts[i].bytes;
    return bytes;
}

status gguf_sha256(const gguf *g, uint8_t out[32]) {
    sha256 *h;
    status s = sha256_open(&h);
    if (s != OK) return s;
    for (int i = 0; i < g->n_parts && s == OK; i++)
        s = sha256_update(h, g->parts[i].data, g->parts[i].bytes);
    if (s == OK) s = sha256_finish(h, out);
    sha256_close(h);
    return s;
}

int gguf_n_tensors(const gguf *g) {
    return g->n_tensors;
}

const gguf_tensor *gguf_tensor_at(const gguf *g, int i) {
    return i >= 0 && i < g->n_tensors ? &g->tensors[i] : NULL;
}

const gguf_tensor *gguf_find_tensor(const gguf *g, const char *name) {
    const int i = name_table_find(&g->tensor_names, (gguf_str){name, strlen(name)});
    return i < 0 ? NULL : &g->tensors[i];
}
