/* Text for people. What a model or a server says is foreign data: its control characters are not
 * obeyed by a terminal. Thread: main. */
#ifndef INFERD_CLIENT_OUTPUT_H
#define INFERD_CLIENT_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "inferd/v1/inference.pb-c.h"

typedef struct output { /* grows; zero is empty */
    char *data;
    size_t bytes, capacity;
} output;

/* Aborts when memory is out. */
void output_append(output *o, const void *data, size_t bytes);
void output_deinit(output *o);

/* Writes text; on a terminal, control characters other than line break and tab become U+FFFD. */
void output_write_terminal(FILE *f, const void *data, size_t bytes, bool terminal);

/* The same on one line, wherever it goes: every control character and every byte that is no UTF-8
 * becomes a space. For what servers, paths and files say. */
void output_write_line(FILE *f, const void *data, size_t bytes);

/* Whoever read standard output has gone: a closed pipe. */
bool output_reader_gone(void);
/* That, or a write to standard output has failed: what a call still brings would be lost. */
bool output_lost(void);

/* One line on stderr: why it ended, counts, times. `reason`: a FinishReason. */
void output_usage(const Inferd__V1__Usage *u, int reason);
#endif
