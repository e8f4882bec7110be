/* What the files of one instruction set offer each other, and the tables to choose from: data, so
 * that nothing compiled for an instruction set runs before kernels.c has looked for it. */
#ifndef INFERD_KERNELS_CPU_KERNELS_ISA_H
#define INFERD_KERNELS_CPU_KERNELS_ISA_H

#include <math.h>
#include <string.h>

#include "kernels/cpu/kernels.h"

void linear_portable(const pack *w, const act *a, int i_panel, int t0, int n_t,
                     const linear_out *o);
void linear_avx2(const pack *w, const act *a, int i_panel, int t0, int n_t, const linear_out *o);
void linear_avx512(const pack *w, const act *a, int i_panel, int t0, int n_t, const linear_out *o);

extern const cpu_kernels KERNELS_PORTABLE;
extern const cpu_kernels KERNELS_AVX2;   /* x86-64 only */
extern const cpu_kernels KERNELS_AVX512; /* x86-64 only */
#endif
