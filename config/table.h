/* The table of keys: the only place where a key, its range, its default and its meaning are
 * written. Parser, printer, environment names, command line and documents all come from it.
 * Internal to config/. Thread: main. */
#ifndef INFERD_CONFIG_TABLE_H
#define INFERD_CONFIG_TABLE_H

#include "config/config.h"

typedef enum key_kind {
    KEY_TEXT,     /* char[size] */
    KEY_PATH,     /* char[size], a file; empty: none */
    KEY_ADDR,     /* char[size], host:port or unix:PATH */
    KEY_ADDR_OFF, /* the same, or `off` */
    KEY_SHA256,   /* char[65], empty or 64 hex digits */
    KEY_INT,      /* int */
    KEY_COUNT,    /* uint64_t */
    KEY_BYTES,    /* uint64_t; suffixes KiB, MiB, GiB */
    KEY_BOOL,     /* bool: true, false */
    KEY_ENUM      /* an enum whose values index `choices` */
} key_kind;

typedef struct config_key {
    const char *name; /* "server.tls.cert": lower-case words, sections joined by dots */
    key_kind kind;
    size_t offset, size; /* of the member in config */
    uint64_t min, max;   /* numbers only */
    const char *initial; /* the default, as text */
    const char *choices; /* words separated by '|': KEY_ENUM in order, KEY_INT as the only values */
    const char *doc;     /* one or two sentences, no line breaks */
} config_key;

enum { CONFIG_REASON_MAX = 160, CONFIG_TEXT_MAX = CONFIG_PATH_MAX };

/* All keys in print order: keys of one section are neighbours. */
const config_key *config_keys(int *n);
/* Index of the key `name`, or -1. */
int config_key_find(const char *name);
/* True if some key lies below `name` ("server", "server.tls"). */
bool config_section_exists(const char *name);
/* The key whose name is nearest to `name`, for "did you mean"; NULL if none is near. */
const char *config_key_nearest(const char *name);

/* Parses text (NUL-terminated) into *c. On E_INVAL c is untouched and reason says what is wrong
 * with the value; it never repeats the value. */
BASE_MUST_USE status config_key_set(const config_key *k, const char *text, config *c,
                                    char reason[CONFIG_REASON_MAX]);
/* The value as text that config_key_set takes back. */
void config_key_text(const config_key *k, const config *c, char out[CONFIG_TEXT_MAX]);
/* "0..65535", "auto, cpu, cuda", "" when there is nothing to say. */
void config_key_range(const config_key *k, char out[CONFIG_REASON_MAX]);
#endif
