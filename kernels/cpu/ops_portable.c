/* The portable kernels: every body over vec_portable.h. */
#include "kernels/cpu/kernels_isa.h"
#include "kernels/cpu/vec_portable.h"

/* 16-bit words in order. */
static void store_codes(act_row *o, vi first, vi second) {
    int16_t w[32];
    for (int i = 0; i < 16; i++) {
        w[i] = (int16_t)first.v[i];
        w[16 + i] = (int16_t)second.v[i];
    }
    memcpy(o->c0, w, sizeof o->c0);
    memcpy(o->c1, w + 16, sizeof o->c1);
}

/* The low byte of i is l. */
static void store_low(int8_t *l, vi first, vi second) {
    for (int i = 0; i < 16; i++) {
        l[i] = (int8_t)(uint8_t)((uint32_t)first.v[i] & 255);
        l[16 + i] = (int8_t)(uint8_t)((uint32_t)second.v[i] & 255);
    }
}

#define ATTENTION_K_GROUPS  1
#define ATTENTION_V_VECTORS 1
#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/norm_body.h"
#include "kernels/cpu/quantise_body.h"
#include "kernels/cpu/scan_body.h"

const cpu_kernels KERNELS_PORTABLE = {
    .name = "portable",
    .rms_norm = rms_norm,
    .quantise = quantise,
    .silu_mul = silu_mul,
    .linear = linear_portable,
    .attention = attention,
    .scan_max = scan_max,
    .scan_find = scan_find,
    .scan_count_above = scan_count_above,
    .scan_exp = scan_exp,
};
