/* Which kernels this processor can run. */
#include "kernels/cpu/kernels.h"

#include "kernels/cpu/kernels_isa.h"

const cpu_kernels *cpu_kernels_portable(void) {
    return &KERNELS_PORTABLE;
}

/* __builtin_cpu_supports also asks the operating system (XGETBV) whether it saves the registers. */
const cpu_kernels *cpu_kernels_avx2(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi2"))
        return &KERNELS_AVX2; /* every processor with AVX2 has F16C */
#endif
    return NULL;
}

const cpu_kernels *cpu_kernels_avx512(void) {
#if defined(__x86_64__)
    if (cpu_kernels_avx2() == NULL) return NULL;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi"))
        return &KERNELS_AVX512;
#endif
    return NULL;
}

const cpu_kernels *cpu_kernels_best(void) {
    const cpu_kernels *k = cpu_kernels_avx512();
    if (k == NULL) k = cpu_kernels_avx2();
    return k != NULL ? k : cpu_kernels_portable();
}
