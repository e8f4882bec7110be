/* The file: a small part of YAML, read as events. A document is one mapping of sections; a value is
 * one scalar. Anchors, aliases, tags, lists, a second document, an unknown or a repeated key are
 * refused with file, line and key. Nesting never passes the depth of the table, because a section
 * that no key lies in is refused when it opens; LIMIT_CONFIG_DEPTH is the same rule for a table
 * that would grow. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/limits.h"
#include "config/load.h"

typedef struct reader {
    loader *l;
    yaml_parser_t yaml;
    yaml_event_t event; /* the current one, owned */
    bool key_seen[CONFIG_KEYS_MAX];
    error *err;
} reader;

static int event_line(const yaml_event_t *e) {
    return (int)e->start_mark.line + 1;
}

static status refuse(reader *r, const char *key, const char *reason) {
    return error_set(r->err, E_FORMAT, "%s:%d: %s%s%s", r->l->file, event_line(&r->event), key,
                     *key ? ": " : "", reason);
}

static status next_event(reader *r) {
    yaml_event_delete(&r->event);
    if (yaml_parser_parse(&r->yaml, &r->event)) return OK;
    memset(&r->event, 0, sizeof r->event);
    const bool reading = r->yaml.error == YAML_READER_ERROR;
    const size_t line = r->yaml.problem_mark.line + 1;
    return error_set(r->err, E_FORMAT, "%s:%zu: not valid YAML: %s", r->l->file, reading ? 1 : line,
                     r->yaml.problem ? r->yaml.problem : "out of memory");
}

/* A scalar without anchor, tag, or NUL. What plain YAML calls null is no value. */
static status check_scalar(reader *r, const char *key) {
    const yaml_event_t *e = &r->event;
    if (e->type == YAML_ALIAS_EVENT) return refuse(r, key, "aliases are not taken");
    if (e->type == YAML_SEQUENCE_START_EVENT) return refuse(r, key, "lists are not taken");
    if (e->type != YAML_SCALAR_EVENT) return refuse(r, key, "one value is expected here");
    if (e->data.scalar.anchor) return refuse(r, key, "anchors are not taken");
    if (e->data.scalar.tag) return refuse(r, key, "tags are not taken");
    const char *text = (const char *)e->data.scalar.value;
    if (strlen(text) != e->data.scalar.length) return refuse(r, key, "a NUL character");
    return OK;
}

static bool scalar_is_null(const yaml_event_t *e) {
    const char *text = (const char *)e->data.scalar.value;
    return e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (*text == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0);
}

static status check_mapping(reader *r, const char *key) {
    const yaml_event_t *e = &r->event;
    if (e->data.mapping_start.anchor) return refuse(r, key, "anchors are not taken");
    if (e->data.mapping_start.tag) return refuse(r, key, "tags are not taken");
    return OK;
}

static status unknown_key(reader *r, const char *name) {
    const char *near = config_key_nearest(name);
    if (!near) return refuse(r, name, "unknown key");
    char reason[CONFIG_REASON_MAX];
    (void)snprintf(reason, sizeof reason, "unknown key; did you mean %.64s?", near);
    return refuse(r, name, reason);
}

static status read_mapping(reader *r, const char *prefix, int depth);

/* The value of key or section `name`; the event is its start, the key stood on `line`. */
static status read_value(reader *r, const char *name, int line, int depth) {
    const int i_key = config_key_find(name);
    if (r->event.type == YAML_MAPPING_START_EVENT) {
        if (i_key >= 0) return refuse(r, name, "takes one value, not a mapping");
        if (depth >= LIMIT_CONFIG_DEPTH) return refuse(r, name, "nested too deeply");
        const status s = check_mapping(r, name);
        return s != OK ? s : read_mapping(r, name, depth + 1);
    }
    status s = check_scalar(r, name);
    if (s != OK) return s;
    if (i_key < 0) { /* a section: an empty one (all its keys commented out) is fine */
        return scalar_is_null(&r->event) ? OK : refuse(r, name, "is a section: its keys go below");
    }
    if (scalar_is_null(&r->event)) return refuse(r, name, "has no value (\"\" is the empty text)");
    char where[CONFIG_PATH_MAX + 16];
    (void)snprintf(where, sizeof where, "%s:%d", r->l->file, line);
    return loader_set(r->l, where, name, (const char *)r->event.data.scalar.value, FROM_FILE, line,
                      r->err);
}

/* Joins prefix and the key under the cursor; refuses what no key can be called. */
static status read_key(reader *r, const char *prefix, char name[CONFIG_NAME_MAX]) {
    status s = check_scalar(r, prefix);
    if (s != OK) return s;
    const char *text = (const char *)r->event.data.scalar.value;
    const size_t len = strlen(text);
    for (size_t i = 0; i < len; i++)
        if (text[i] <= ' ' || text[i] > '~' || len > 64)
            return refuse(r, prefix, "unknown key (not a word)");
    if (len == 0) return refuse(r, prefix, "an empty key");
    (void)snprintf(name, CONFIG_NAME_MAX, "%s%s%s", prefix, *prefix ? "." : "", text);
    if (strchr(text, '.')) return refuse(r, name, "unknown key; sections are nested, not dotted");
    if (config_key_find(name) < 0 && !config_section_exists(name)) return unknown_key(r, name);
    return OK;
}

static status read_mapping(reader *r, const char *prefix, int depth) {
    enum { SECTIONS_MAX = 32 };
    char sections[SECTIONS_MAX][64]; /* opened in this mapping, to find repetitions */
    int n_sections = 0;
    for (;;) {
        status s = next_event(r);
        if (s != OK) return s;
        if (r->event.type == YAML_MAPPING_END_EVENT) return OK;
        char name[CONFIG_NAME_MAX];
        s = read_key(r, prefix, name);
        if (s != OK) return s;
        const int i_key = config_key_find(name), line = event_line(&r->event);
        if (i_key >= 0) {
            if (r->key_seen[i_key]) return refuse(r, name, "given twice");
            r->key_seen[i_key] = true;
        } else {
            for (int i = 0; i < n_sections; i++)
                if (strcmp(sections[i], name) == 0) return refuse(r, name, "given twice");
            if (n_sections == SECTIONS_MAX) return refuse(r, name, "too many sections");
            (void)snprintf(sections[n_sections++], sizeof *sections, "%.63s", name);
        }
        s = next_event(r);
        if (s == OK) s = read_value(r, name, line, depth);
        if (s != OK) return s;
    }
}

static status read_document(reader *r) {
    const yaml_event_t *e = &r->event;
    if (e->data.document_start.tag_directives.start != e->data.document_start.tag_directives.end)
        return refuse(r, "", "tags are not taken");
    status s = next_event(r);
    if (s != OK) return s;
    if (e->type == YAML_MAPPING_START_EVENT) {
        s = check_mapping(r, "");
        if (s == OK) s = read_mapping(r, "", 1);
    } else {
        s = check_scalar(r, "");
        if (s == OK && !scalar_is_null(e)) s = refuse(r, "", "a mapping of sections is expected");
    }
    if (s != OK) return s;
    s = next_event(r); /* document end */
    return s != OK ? s : next_event(r);
}

static status read_stream(reader *r) {
    status s = next_event(r); /* stream start */
    if (s == OK) s = next_event(r);
    if (s == OK && r->event.type == YAML_DOCUMENT_START_EVENT) s = read_document(r);
    if (s == OK && r->event.type != YAML_STREAM_END_EVENT)
        s = refuse(r, "", "a second document is not taken");
    return s;
}

status loader_read_yaml(loader *l, const char *text, size_t bytes, error *err) {
    if (bytes > LIMIT_CONFIG_BYTES)
        return error_set(err, E_TOO_LARGE, "%s: larger than %u bytes", l->file, LIMIT_CONFIG_BYTES);
    reader r = {.l = l, .err = err};
    if (!yaml_parser_initialize(&r.yaml))
        return error_set(err, E_NOMEM, "%s: YAML parser", l->file);
    yaml_parser_set_encoding(&r.yaml, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.yaml, (const unsigned char *)text, bytes);
    const status s = read_stream(&r);
    yaml_event_delete(&r.event);
    yaml_parser_delete(&r.yaml);
    return s;
}

status loader_read_file(loader *l, const char *path, error *err) {
    l->file = path;
    FILE *f = fopen(path, "rb");
    if (!f) return error_set(err, E_IO, "%s: %s", path, strerror(errno));
    status s = OK;
    char *text = malloc(LIMIT_CONFIG_BYTES + 1);
    if (!text) {
        s = error_set(err, E_NOMEM, "%s: %u bytes", path, LIMIT_CONFIG_BYTES + 1);
    } else {
        errno = 0;
        const size_t bytes = fread(text, 1, LIMIT_CONFIG_BYTES + 1, f);
        s = ferror(f) ? error_set(err, E_IO, "%s: %s", path, strerror(errno))
                      : loader_read_yaml(l, text, bytes, err);
    }
    free(text);
    (void)fclose(f);
    return s;
}
