/* Sampling of one row of logits on the host: the rules of kernels/step.h. Thread: any, each with
 * its own scratch. */
#ifndef INFERD_KERNELS_CPU_SAMPLE_H
#define INFERD_KERNELS_CPU_SAMPLE_H

#include "kernels/cpu/kernels.h"
#include "kernels/step.h"

/* What is the same for all rows of a model. Borrowed views. */
typedef struct sample_vocab {
    int n_vocab;
    const int32_t *never; /* ids that must not be drawn, ascending */
    int n_never;
} sample_vocab;

enum { SAMPLE_BINS = 2048 };

/* Memory for one row at a time; arrays of n_vocab. */
typedef struct sample_scratch {
    float *logit;  /* after bias and penalties */
    float *weight; /* exp((logit - max) / temperature) */
    int32_t *id;   /* the survivors so far, ascending */
    double mass[SAMPLE_BINS];
    int32_t count[SAMPLE_BINS];
} sample_scratch;

/* The row's answer. bias and seen are the step's arrays. When every token is forbidden nothing can
 * be drawn: reported like a row that is not finite. */
void sample_answer(const cpu_kernels *k, const sample_vocab *v, const float *logits,
                   const sample_row *row, const token_bias *bias, const token_seen *seen,
                   sample_scratch *s, sampled *out);

/* The distribution that a token is drawn from (temperature > 0): tokens s->id[0..n) ascending, with
 * weights s->weight[id] that sum up to *total. 0 when every token is forbidden. For tests too. */
int sample_distribution(const cpu_kernels *k, const sample_vocab *v, const float *logits,
                        const sample_row *row, const token_bias *bias, const token_seen *seen,
                        sample_scratch *s, double *total);
#endif
