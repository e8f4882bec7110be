/* What the files of one instruction set offer each other, and the tables to choose from: data, so
 * that nothing compiled for an instruction set runs before kernels.c has looked for it. */
#ifndef INFERD_KERNELS_CPU_KERNELS_ISA_H
#define INFERD_KERNELS_CPU_KERNELS_ISA_H

#include <math.h>
#include <string.h>

#include "kernels/cpu/kernels.h"

void linear_portable(const pack *w, const act *a, int p0, int p1, int t0, int n_t,
                     const linear_out *o);
void linear_avx2(const pack *w, const act *a, int p0, int p1, int t0, int n_t, const linear_out *o);
void linear_avx512(const pack *w, const act *a, int p0, int p1, int t0, int n_t,
                   const linear_out *o);
void linear_amx(const pack *w, const act *a, int p0, int p1, int t0, int n_t, const linear_out *o);

extern const cpu_kernels KERNELS_PORTABLE;
extern const cpu_kernels KERNELS_AVX2;   /* x86-64 only */
extern const cpu_kernels KERNELS_AVX512; /* x86-64 only */
extern const cpu_kernels KERNELS_AMX;    /* x86-64 only */

/* The rest of y past p panels. */
static inline linear_out linear_out_at(const linear_out *o, int p) {
    return (linear_out){.y = o->y + p * PACK_ROWS,
                        .ld = o->ld,
                        .bias = o->bias != NULL ? o->bias + p * PACK_ROWS : NULL,
                        .add = o->add};
}
#endif
