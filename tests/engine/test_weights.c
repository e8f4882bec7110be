/* engine/weights: shapes, views, RoPE tables, and refusals by name. */
#include <math.h>

#include "engine/weights.h"
#include "gguf_builder.h"
#include "tests/check_main.h"

typedef struct opened {
    bytes file;
    gguf *g;
    weights *w;
    const model_desc *d;
    error err;
} opened;

static status open_builder(gguf_builder *b, int context_length, opened *o) {
    *o = (opened){.file = builder_finish(b)};
    status s = gguf_open_memory(o->file.p, o->file.n, &o->g, &o->err);
    ck_assert_msg(s == OK, "%s", o->err.text);
    s = weights_open(o->g, context_length, &o->w, &o->err);
    if (s == OK) o->d = weights_desc(o->w);
    return s;
}

static void close_opened(opened *o) {
    weights_close(o->w);
    gguf_close(o->g);
    free(o->file.p);
}

static void open_ok(gguf_builder *b, int context_length, opened *o) {
    const status s = open_builder(b, context_length, o);
    ck_assert_msg(s == OK, "%s: %s", status_name(s), o->err.text);
}

static const void *data_of(const opened *o, const char *name) {
    const gguf_tensor *t = gguf_find_tensor(o->g, name);
    ck_assert_msg(t != NULL, "%s", name);
    return t->data;
}

START_TEST(plain_shapes) {
    tiny_model m = tiny_default("llama");
    gguf_builder b = tiny_builder(&m);
    opened o;
    open_ok(&b, 0, &o);
    const model_desc *d = o.d;
    ck_assert_str_eq(d->architecture, "llama");
    ck_assert(d->n_layers == 2 && d->n_embd == 32 && d->n_ff == 32 && d->n_heads == 2);
    ck_assert(d->n_kv_heads == 1 && d->head_dim == 16 && d->n_vocab == 264 && d->n_rot == 16);
    ck_assert(d->context_length == 64 && !d->rope_neox && d->sliding_window == 0);
    ck_assert_ptr_eq(d->output.data, d->token_embd.data); /* tied */
    ck_assert(d->layers[1].k.n_out == 16 && d->layers[1].k.n_in == 32);
    ck_assert_ptr_eq(d->layers[1].k.data, data_of(&o, "blk.1.attn_k.weight"));
    ck_assert_str_eq(d->layers[1].k.name, "blk.1.attn_k.weight");
    ck_assert_ptr_null(d->layers[0].q_bias.data);
    ck_assert_ptr_null(d->layers[0].q_norm.data);
    ck_assert_ptr_null(d->output_bias.data);
    ck_assert_double_eq_tol((double)d->attn_scale, 0.25, 1e-7);
    for (int i = 0; i < 8; i++)
        ck_assert_double_eq_tol((double)d->rope_freq[i], pow(10000, -i / 8.0), 1e-7);
    const model_info *info = weights_info(o.w);
    ck_assert_str_eq(info->name, "tiny");
    ck_assert_str_eq(info->quantization, "F32");
    ck_assert_int_eq(info->trained_context_length, 64);
    ck_assert_uint_eq(info->n_parameters,
                      264 * 32 + 32 + 2 * (2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 32));
    close_opened(&o);
}
END_TEST

START_TEST(families) {
    static const char *const archs[] = {"llama", "qwen2", "qwen3", "phi3"};
    tiny_model m = tiny_default(archs[_i]);
    m.tied = _i % 2 == 0;
    gguf_builder b = tiny_builder(&m);
    opened o;
    open_ok(&b, 0, &o);
    ck_assert_int_eq(o.d->rope_neox, _i > 0);
    ck_assert_int_eq(o.d->layers[0].q_bias.data != NULL, _i == 1);
    ck_assert_int_eq(o.d->layers[0].k_norm.data != NULL, _i == 2);
    ck_assert_int_eq(o.d->output.data == o.d->token_embd.data, m.tied);
    close_opened(&o);
}
END_TEST

START_TEST(fused_tensors_are_split) {
    tiny_model m = tiny_default("phi3");
    gguf_builder b = tiny_builder(&m);
    opened o;
    open_ok(&b, 0, &o);
    const layer_desc *l = &o.d->layers[1];
    const float *qkv = data_of(&o, "blk.1.attn_qkv.weight");
    const float *up = data_of(&o, "blk.1.ffn_up.weight");
    ck_assert_ptr_eq(l->q.data, qkv);
    ck_assert_ptr_eq(l->k.data, qkv + 32 * 32);
    ck_assert_ptr_eq(l->v.data, qkv + (32 + 16) * 32);
    ck_assert(l->q.n_out == 32 && l->k.n_out == 16 && l->v.n_out == 16 && l->v.n_in == 32);
    ck_assert_ptr_eq(l->gate.data, up); /* gate first */
    ck_assert_ptr_eq(l->up.data, up + 32 * 32);
    ck_assert_int_eq(l->up.n_out, 32);
    close_opened(&o);
}
END_TEST

START_TEST(fused_qkv_with_bias) {
    tiny_model m = tiny_default("qwen2");
    m.fused = true; /* attn_qkv is read for any architecture; ffn_up of 2F only for phi3 */
    gguf_builder b = builder_new();
    tiny_keys(&b, &m);
    builder_floats(&b, "token_embd.weight", 32, 8);
    builder_floats(&b, "output_norm.weight", 32, 0);
    for (int i = 0; i < 2; i++) {
        char name[64];
        tiny_floats(&b, i, "attn_qkv.weight", 32, 64);
        tiny_floats(&b, i, "attn_qkv.bias", 64, 0);
        static const struct {
            const char *suffix;
            int in, out;
        } rest[] = {{"attn_norm.weight", 32, 0}, {"attn_output.weight", 32, 32},
                    {"ffn_norm.weight", 32, 0},  {"ffn_gate.weight", 32, 32},
                    {"ffn_up.weight", 32, 32},   {"ffn_down.weight", 32, 32}};
        for (size_t k = 0; k < sizeof rest / sizeof rest[0]; k++) {
            (void)snprintf(name, sizeof name, "blk.%d.%s", i, rest[k].suffix);
            builder_floats(&b, name, (uint64_t)rest[k].in, (uint64_t)rest[k].out);
        }
    }
    opened o;
    open_ok(&b, 0, &o);
    const float *bias = data_of(&o, "blk.0.attn_qkv.bias");
    ck_assert_ptr_eq(o.d->layers[0].k_bias.data, bias + 32);
    ck_assert_ptr_eq(o.d->layers[0].v_bias.data, bias + 48);
    ck_assert(o.d->layers[0].v_bias.n_in == 16 && o.d->layers[0].v_bias.n_out == 1);
    close_opened(&o);
}
END_TEST

/* ---- RoPE ---- */

static void check_freqs(const opened *o, const double *want, double mscale) {
    for (int i = 0; i < o->d->n_rot / 2; i++)
        ck_assert_msg(fabs((double)o->d->rope_freq[i] / want[i] - 1) < 1e-6, "pair %d: %g, want %g",
                      i, (double)o->d->rope_freq[i], want[i]);
    ck_assert_double_eq_tol((double)o->d->rope_mscale, mscale, 1e-6);
}

START_TEST(rope_linear_and_partial) {
    tiny_model m = tiny_default("llama");
    gguf_builder b = tiny_builder(&m);
    double want[4];
    opened o;
    builder_f32(&b, "llama.rope.freq_base", 500);
    builder_u32(&b, "llama.rope.dimension_count", 8);
    builder_str(&b, "llama.rope.scaling.type", "linear");
    builder_f32(&b, "llama.rope.scaling.factor", 4);
    for (int i = 0; i < 4; i++) want[i] = pow(500, -2.0 * i / 8) / 4;
    open_ok(&b, 0, &o);
    ck_assert_int_eq(o.d->n_rot, 8);
    check_freqs(&o, want, 1);
    close_opened(&o);
}
END_TEST

START_TEST(rope_factor_tensor) {
    static const float factors[8] = {1, 1, 1, 2, 4, 8, 8, 8};
    static const uint64_t ne[1] = {8};
    tiny_model m = tiny_default("llama");
    gguf_builder b = tiny_builder(&m);
    double want[8];
    opened o;
    builder_tensor(&b, "rope_freqs.weight", 1, ne, DTYPE_F32, factors, sizeof factors);
    for (int i = 0; i < 8; i++) want[i] = pow(10000, -i / 8.0) / (double)factors[i];
    open_ok(&b, 0, &o);
    check_freqs(&o, want, 1);
    close_opened(&o);
}
END_TEST

/* Published values for YaRN: with base 10000, 128 dims and an original context of 4096 the ramp
 * goes from dim 20 to dim 46 (worked by hand from the paper's formula). */
START_TEST(rope_yarn) {
    tiny_model m = tiny_default("qwen2");
    m.head_dim = 128;
    m.context_length = 16384;
    gguf_builder b = tiny_builder(&m);
    double want[64];
    opened o;
    builder_str(&b, "qwen2.rope.scaling.type", "yarn");
    builder_f32(&b, "qwen2.rope.scaling.factor", 4);
    builder_u32(&b, "qwen2.rope.scaling.original_context_length", 4096);
    for (int i = 0; i < 64; i++) {
        const double plain = pow(10000, -i / 64.0);
        const double t = i <= 20 ? 0 : i >= 46 ? 1 : (i - 20) / 26.0; /* 0: as trained */
        want[i] = plain * (1 - t) + plain / 4 * t;
    }
    open_ok(&b, 0, &o);
    check_freqs(&o, want, 1 + 0.1 * log(4));
    close_opened(&o);
}
END_TEST

START_TEST(rope_longrope_by_served_context) {
    static const float longs[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    static const float shorts[8] = {1, 1, 1, 1, 1, 1, 1, 1.5f};
    static const uint64_t ne[1] = {8};
    tiny_model m = tiny_default("phi3");
    gguf_builder b = tiny_builder(&m);
    double want[8];
    opened o;
    const int served[] = {0, 64, 33, 32, 16};
    builder_u32(&b, "phi3.rope.scaling.original_context_length", 32);
    builder_f32(&b, "phi3.rope.scaling.attn_factor", 1.19f);
    builder_tensor(&b, "rope_factors_long.weight", 1, ne, DTYPE_F32, longs, sizeof longs);
    builder_tensor(&b, "rope_factors_short.weight", 1, ne, DTYPE_F32, shorts, sizeof shorts);
    const float *f = _i < 3 ? longs : shorts;
    for (int i = 0; i < 8; i++) want[i] = pow(10000, -i / 8.0) / (double)f[i];
    open_ok(&b, served[_i], &o);
    check_freqs(&o, want, (double)1.19f);
    close_opened(&o);
}
END_TEST

START_TEST(context_and_window) {
    tiny_model m = tiny_default("phi3");
    static const struct {
        int served, window, context, expected;
    } cases[] = {{0, 20, 64, 20}, {32, 20, 32, 20}, {16, 20, 16, 0}, {0, 64, 64, 0}, {0, 0, 64, 0}};
    gguf_builder b = tiny_builder(&m);
    opened o;
    builder_u32(&b, "phi3.attention.sliding_window", (uint32_t)cases[_i].window);
    open_ok(&b, cases[_i].served, &o);
    ck_assert_int_eq(o.d->context_length, cases[_i].context);
    ck_assert_int_eq(o.d->sliding_window, cases[_i].expected);
    close_opened(&o);
}
END_TEST

START_TEST(context_above_the_trained_one) {
    tiny_model m = tiny_default("llama");
    gguf_builder b = tiny_builder(&m);
    opened o;
    ck_assert_int_eq(open_builder(&b, 65, &o), E_TOO_LARGE);
    ck_assert_ptr_nonnull(strstr(o.err.text, "65"));
    close_opened(&o);
}
END_TEST

START_TEST(per_layer_arrays) {
    static const int32_t same[] = {1, 1}, different[] = {1, 2}, three[] = {1, 1, 1};
    static const struct {
        const int32_t *v;
        uint64_t n;
        status expected;
    } cases[] = {{same, 2, OK}, {different, 2, E_UNSUPPORTED}, {three, 3, E_FORMAT}};
    tiny_model m = tiny_default("llama");
    gguf_builder b = builder_new();
    char *p;
    opened o;
    tiny_keys(&b, &m);
    /* The scalar head_count_kv gets another name; the array takes its place. */
    for (p = (char *)b.kv.p; memcmp(p, "head_count_kv", 13) != 0;) p++;
    memcpy(p, "head_count_zz", 13);
    builder_array(&b, "llama.attention.head_count_kv", GGUF_I32, cases[_i].n, cases[_i].v,
                  (size_t)cases[_i].n * sizeof(int32_t));
    tiny_tensors(&b, &m);
    const status s = open_builder(&b, 0, &o);
    ck_assert_msg(s == cases[_i].expected, "%s: %s", status_name(s), o.err.text);
    if (s != OK) ck_assert_ptr_nonnull(strstr(o.err.text, "head_count_kv"));
    close_opened(&o);
}
END_TEST

/* ---- refusals: a valid model and one thing wrong; the text names it ---- */

typedef struct refusal {
    const char *arch;
    void (*spoil)(gguf_builder *b);
    status expected;
    const char *text;
} refusal;

static void extra_tensor(gguf_builder *b) {
    builder_floats(b, "blk.0.attn_sinks.weight", 2, 0);
}
static void layer_too_many(gguf_builder *b) {
    builder_floats(b, "blk.2.attn_norm.weight", 32, 0);
}
static void experts(gguf_builder *b) {
    builder_u32(b, "llama.expert_count", 8);
}
static void softcap(gguf_builder *b) {
    builder_f32(b, "llama.final_logit_softcapping", 30);
}
static void bidirectional(gguf_builder *b) {
    builder_bool(b, "llama.attention.causal", 0);
}
static void pattern(gguf_builder *b) {
    builder_u32(b, "llama.attention.sliding_window_pattern", 6);
}
static void scaling_type(gguf_builder *b) {
    builder_str(b, "llama.rope.scaling.type", "dynamic");
}
static void scaling_type_is_int(gguf_builder *b) {
    builder_u32(b, "llama.rope.scaling.type", 1);
}
static void base_nan(gguf_builder *b) {
    builder_f32(b, "llama.rope.freq_base", NAN);
}
static void base_negative(gguf_builder *b) {
    builder_f32(b, "llama.rope.freq_base", -1);
}
static void rot_odd(gguf_builder *b) {
    builder_u32(b, "llama.rope.dimension_count", 7);
}
static void rot_above_head(gguf_builder *b) {
    builder_u32(b, "llama.rope.dimension_count", 18);
}
static void rot_huge(gguf_builder *b) {
    builder_u32(b, "llama.rope.dimension_count", 0xFFFFFFFEu);
}
static void only_long_factors(gguf_builder *b) {
    builder_floats(b, "rope_factors_long.weight", 8, 0);
}
static void rope_factor_zero(gguf_builder *b) {
    static const float zeros[8] = {0};
    static const uint64_t ne[1] = {8};
    builder_tensor(b, "rope_freqs.weight", 1, ne, DTYPE_F32, zeros, sizeof zeros);
}
static void rope_freqs_short(gguf_builder *b) {
    builder_floats(b, "rope_freqs.weight", 7, 0);
}
static void half_precision_bias(gguf_builder *b) {
    static const uint16_t zeros[32] = {0};
    static const uint64_t ne[1] = {32};
    builder_tensor(b, "blk.0.attn_q.bias", 1, ne, DTYPE_F16, zeros, sizeof zeros);
}
static void int8_output(gguf_builder *b) {
    static const int8_t zeros[32 * 264] = {0};
    static const uint64_t ne[2] = {32, 264};
    builder_tensor(b, "output.weight", 2, ne, DTYPE_I8, zeros, sizeof zeros);
}
static void output_too_short(gguf_builder *b) {
    builder_floats(b, "output.weight", 32, 263);
}
static void window_is_text(gguf_builder *b) {
    builder_str(b, "llama.attention.sliding_window", "all");
}

static const refusal refusals[] = {
    {"llama", extra_tensor, E_UNSUPPORTED, "blk.0.attn_sinks.weight"},
    {"llama", layer_too_many, E_UNSUPPORTED, "blk.2.attn_norm.weight"},
    {"llama", experts, E_UNSUPPORTED, "expert_count"},
    {"llama", softcap, E_UNSUPPORTED, "final_logit_softcapping"},
    {"llama", bidirectional, E_UNSUPPORTED, "attention.causal"},
    {"llama", pattern, E_UNSUPPORTED, "sliding_window_pattern"},
    {"llama", scaling_type, E_UNSUPPORTED, "rope.scaling.type"},
    {"llama", scaling_type_is_int, E_FORMAT, "rope.scaling.type"},
    {"llama", base_nan, E_FORMAT, "rope.freq_base"},
    {"llama", base_negative, E_FORMAT, "rope.freq_base"},
    {"llama", rot_odd, E_FORMAT, "dimension_count"},
    {"llama", rot_above_head, E_FORMAT, "dimension_count"},
    {"llama", rot_huge, E_FORMAT, "dimension_count"},
    {"llama", only_long_factors, E_FORMAT, "rope_factors_short.weight"},
    {"llama", rope_factor_zero, E_FORMAT, "rope_freqs.weight"},
    {"llama", rope_freqs_short, E_FORMAT, "rope_freqs.weight"},
    {"llama", half_precision_bias, E_UNSUPPORTED, "blk.0.attn_q.bias"},
    {"llama", int8_output, E_UNSUPPORTED, "output.weight"},
    {"llama", output_too_short, E_FORMAT, "output.weight"},
    {"llama", window_is_text, E_FORMAT, "sliding_window"},
};

START_TEST(refusals_name_the_fault) {
    const refusal *r = &refusals[_i];
    tiny_model m = tiny_default(r->arch);
    gguf_builder b = tiny_builder(&m);
    opened o;
    r->spoil(&b);
    const status s = open_builder(&b, 0, &o);
    ck_assert_msg(s == r->expected, "%s: got %s: %s", r->text, status_name(s), o.err.text);
    ck_assert_msg(strstr(o.err.text, r->text) != NULL, "%s: %s", r->text, o.err.text);
    close_opened(&o);
}
END_TEST

/* One number of the model changed where the tensors do not follow. */
START_TEST(shapes_must_agree) {
    tiny_model m[] = {tiny_default("llama"), tiny_default("llama"), tiny_default("llama"),
                      tiny_default("llama"), tiny_default("llama"), tiny_default("qwen2"),
                      tiny_default("qwen3"), tiny_default("nemo")};
    static const char *const named[] = {"blk.2.attn_norm.weight", "ffn_", "head_count",
                                        "value_length",           "kv",   "attn_q.bias",
                                        "attn_q_norm.weight",     "nemo"};
    gguf_builder b = builder_new();
    tiny_model claimed = m[_i];
    opened o;
    if (_i == 0) claimed.n_layers = 3;
    if (_i == 1) claimed.n_ff = 64;
    if (_i == 2) claimed.n_heads = 0;
    if (_i == 4) claimed.n_kv_heads = 2, claimed.n_heads = 3;
    if (_i == 5) m[_i].bias = false;
    if (_i == 6) m[_i].head_norm = false;
    tiny_keys(&b, &claimed);
    if (_i == 3) {
        char *p = (char *)b.kv.p;
        while (memcmp(p, "value_length", 12) != 0) p++;
        p[12 + 4] = 8; /* after the type: the value's low byte */
    }
    tiny_tensors(&b, &m[_i]);
    const status s = open_builder(&b, 0, &o);
    ck_assert_msg(s == E_FORMAT || s == E_UNSUPPORTED, "case %d: %s", _i, status_name(s));
    ck_assert_msg(strstr(o.err.text, named[_i]) != NULL, "case %d: %s", _i, o.err.text);
    close_opened(&o);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("weights");
    tcase_add_test(tc, plain_shapes);
    tcase_add_loop_test(tc, families, 0, 4);
    tcase_add_test(tc, fused_tensors_are_split);
    tcase_add_test(tc, fused_qkv_with_bias);
    tcase_add_test(tc, rope_linear_and_partial);
    tcase_add_test(tc, rope_factor_tensor);
    tcase_add_test(tc, rope_yarn);
    tcase_add_loop_test(tc, rope_longrope_by_served_context, 0, 5);
    tcase_add_loop_test(tc, context_and_window, 0, 5);
    tcase_add_test(tc, context_above_the_trained_one);
    tcase_add_loop_test(tc, per_layer_arrays, 0, 3);
    tcase_add_loop_test(tc, refusals_name_the_fault, 0,
                        (int)(sizeof refusals / sizeof refusals[0]));
    tcase_add_loop_test(tc, shapes_must_agree, 0, 8);
    return check_run("weights", tc);
}
