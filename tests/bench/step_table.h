/* Where the time of a load goes: steps by how many rows decode and how many prefill, and the gaps
 * between the tokens of a stream. Written by the engine thread, read when all has ended. */
#ifndef INFERD_BENCH_STEP_TABLE_H
#define INFERD_BENCH_STEP_TABLE_H

#include <stdint.h>
#include <stdio.h>

#include "engine/engine.h"

enum { STEP_CLASSES = 7, GAP_BINS = 4096 };

/* Upper ends of the classes; the last one is open. */
static const int DECODE_CLASS[STEP_CLASSES] = {0, 8, 32, 64, 128, 256, INT32_MAX};
static const int PREFILL_CLASS[STEP_CLASSES] = {0, 64, 256, 512, 1024, 4096, INT32_MAX};

typedef struct step_cell {
    int64_t n, ns, decodes, prefills;
} step_cell;

typedef struct step_table {
    step_cell cell[STEP_CLASSES][STEP_CLASSES]; /* [decode][prefill] */
    int64_t gap[GAP_BINS]; /* by time: bin i holds up to GAP_FIRST_NS * 1.005^i */
    int64_t n_gaps;
} step_table;

#define GAP_FIRST_NS 1e4
#define GAP_GROWTH   1.005

static int step_class(const int *upper, int n) {
    int i = 0;
    while (n > upper[i]) i++;
    return i;
}

static void step_table_add(step_table *t, const step_report *r) {
    step_cell *c = &t->cell[step_class(DECODE_CLASS, r->n_decode_tokens)]
                           [step_class(PREFILL_CLASS, r->n_prefill_tokens)];
    if (r->n_seqs == 0) return;
    c->n++;
    c->ns += r->step_ns;
    c->decodes += r->n_decode_tokens;
    c->prefills += r->n_prefill_tokens;
}

static void step_table_gap(step_table *t, int64_t ns) {
    double end = GAP_FIRST_NS;
    int i = 0;
    for (; i < GAP_BINS - 1 && (double)ns > end; i++) end *= GAP_GROWTH;
    t->gap[i]++;
    t->n_gaps++;
}

/* Milliseconds below which the share q of the gaps lies, to half a per cent. */
static double step_table_gap_ms(const step_table *t, double q) {
    double end = GAP_FIRST_NS;
    int64_t n = 0;
    for (int i = 0; i < GAP_BINS; i++, end *= GAP_GROWTH) {
        n += t->gap[i];
        if ((double)n >= q * (double)t->n_gaps) break;
    }
    return end / 1e6;
}

/* One line a class that occurred: steps, mean rows, mean time and share of all step time. */
static void step_table_print(const step_table *t) {
    int64_t total = 0;
    for (int i = 0; i < STEP_CLASSES; i++)
        for (int k = 0; k < STEP_CLASSES; k++) total += t->cell[i][k].ns;
    printf("%8s %12s %12s %10s %7s\n", "steps", "decode rows", "prefill rows", "ms/step", "time");
    for (int i = 0; i < STEP_CLASSES; i++)
        for (int k = 0; k < STEP_CLASSES; k++) {
            const step_cell *c = &t->cell[i][k];
            if (c->n == 0) continue;
            const double n = (double)c->n;
            printf("%8lld %12.1f %12.1f %10.3f %6.1f%%\n", (long long)c->n, (double)c->decodes / n,
                   (double)c->prefills / n, (double)c->ns / n / 1e6,
                   total > 0 ? 100.0 * (double)c->ns / (double)total : 0.0);
        }
    if (t->n_gaps == 0) return;
    printf("between tokens of a stream: p50 %.2f ms, p90 %.2f, p99 %.2f\n",
           step_table_gap_ms(t, 0.5), step_table_gap_ms(t, 0.9), step_table_gap_ms(t, 0.99));
}
#endif
