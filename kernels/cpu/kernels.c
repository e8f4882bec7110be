/* Which kernels this processor can run. */
#define _DEFAULT_SOURCE /* syscall */
#include "kernels/cpu/kernels.h"

#include "kernels/cpu/kernels_isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

const cpu_kernels *cpu_kernels_amx(void) {
#if defined(__x86_64__) && defined(SYS_arch_prctl)
    enum { TILE_INT8 = 1 << 25, ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (cpu_kernels_avx512() == NULL || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 ||
        (d & TILE_INT8) == 0)
        return NULL;
    /* Linux 5.16 grants the 8 KiB of tile state on request, to the process and its threads. */
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0) return &KERNELS_AMX;
#endif
    return NULL;
}

const cpu_kernels *cpu_kernels_best(void) {
    const cpu_kernels *k = cpu_kernels_amx();
    if (k == NULL) k = cpu_kernels_avx512();
    if (k == NULL) k = cpu_kernels_avx2();
    return k != NULL ? k : cpu_kernels_portable();
}
