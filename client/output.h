/* Text for people. A model's output is foreign data: on a terminal its control characters are not
 * obeyed. Thread: main. */
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

/* One line on stderr: why it ended, counts, times. `reason`: a FinishReason. */
void output_usage(const Inferd__V1__Usage *u, int reason);
#endif
