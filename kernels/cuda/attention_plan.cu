/* The host's plan of a step: how many pieces each long row is cut into, and which block does what.
 * Made once a step, used by every layer.
 *
 * Decode: every (row, KV head, 8 query heads) is one item, or several when that shortens the step:
 * for each number of pieces of the longest row the model below is evaluated and the best is taken.
 *   t = max(all bytes / device rate, bytes of the busiest multiprocessor / its rate)
 *       + (split ? 1.2 + 0.025 pieces : 0) + 0.05 items / multiprocessors     microseconds
 * The rates are the H200's; only their ratio matters elsewhere. Longest rows first, so that the
 * last blocks to start are short. Rows of equal, short length are chained instead (several items on
 * a block that stays): the ring is filled again across the seam. */
#include <assert.h>
#include <string.h>

#include <algorithm>

#include "kernels/cuda/attention_internal.h"

/* Measured on the H200: a long read of the whole device, and one multiprocessor alone. */
#define DEVICE_BYTES_A_US 4.3e6
#define SM_BYTES_A_US     0.062e6
#define PIECES_MAX        128
#define CHAIN_KEYS_MAX    1024 /* chaining gains below it, and loses on mixed lengths */
#define ALIGN_BYTES       256

static int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}
static size_t align_up(size_t n) {
    return (n + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

int attention_slot_heads(const attention *a) {
    return a->group < 8 ? a->group : 8;
}
/* Items of an uncut row. */
static int row_items(const attention *a) {
    return a->kv.n_kv_heads * ceil_div(a->group, 8);
}
static bool uses_decode(const attention *a) {
    return a->kv.tensor_core && !a->deterministic;
}

/* Blocks of a few rows all run at once: more pieces than blocks would wait for a second round. With
 * more rows half a round is left to cut the longest of mixed lengths. Every padding block costs:
 * 264 of them made 64 blocks of 512 keys 1.4 us slower (H200). */
extern "C" int attention_decode_grid(const attention *a, int n_decode_bucket) {
    if (!uses_decode(a) || n_decode_bucket < 1) return 0;
    const int base = n_decode_bucket * row_items(a);
    return base <= a->n_sms ? a->n_sms : base + a->n_sms / 2;
}

workspace_parts attention_workspace_parts(const attention *a) {
    workspace_parts w = {};
    const size_t slots = (size_t)attention_decode_grid(a, a->n_seqs_max);
    const size_t heads = (size_t)attention_slot_heads(a), dim = (size_t)a->kv.head_dim;
    const size_t tile_slots = (size_t)attention_tile_slots_max(a);
    const size_t tile_rows = tile_slots * (size_t)a->tile[0].rows;
    size_t used = 0;
    auto take = [&](size_t bytes) {
        const size_t at = used;
        used += align_up(bytes);
        return at;
    };
    w.partial = take(slots * heads * dim * sizeof(float));
    w.partial_ml = take(slots * heads * sizeof(float2));
    w.counter = take(slots * sizeof(unsigned));
    w.tile_partial = take(tile_rows * dim * sizeof(float));
    w.tile_partial_ml = take(tile_slots * 2 * 128 * sizeof(float4));
    w.tile_counter = take(tile_slots * 2 * sizeof(unsigned));
    w.bytes = used;
    return w;
}

extern "C" size_t attention_workspace_bytes(const attention *a) {
    const size_t n = attention_workspace_parts(a).bytes;
    return n > ALIGN_BYTES ? n : ALIGN_BYTES;
}

extern "C" size_t attention_plan_bytes(const attention *a) {
    const size_t items = 2 * (size_t)attention_decode_grid(a, a->n_seqs_max);
    return align_up(items * sizeof(attention_item)) +
           align_up(attention_tiles_max(a) * sizeof(attention_tile)) + ALIGN_BYTES;
}

/* First key that a row of kv_len keys sees, rounded down to whole tiles: the first tile
 * then has a visible key, which the kernel's maximum relies on. */
static int first_key(const attention *a, int kv_len, int tile) {
    if (a->window <= 0 || kv_len <= a->window) return 0;
    return (kv_len - a->window) / tile * tile;
}

struct lengths {
    int longest;
    double total; /* keys over all (row, KV head) pairs */
    bool equal;
};

static lengths measure(const attention *a, const step *s, int tile) {
    lengths r = {0, 0.0, true};
    int first = 0;
    for (int i = 0; i < s->n_decode; i++) {
        const int n = s->kv_len[i] - first_key(a, s->kv_len[i], tile);
        if (i == 0) first = n;
        if (n != first) r.equal = false;
        r.longest = std::max(r.longest, n);
        r.total += n;
    }
    r.total *= row_items(a);
    return r;
}

/* Keys of a piece: the least of the cost model; at most `bound` items. */
static int choose_chunk(const attention *a, const step *s, const lengths *len, int unit, int tile,
                        int bound) {
    const int scale_bytes = a->kv.type == DTYPE_I8 ? 2 * (int)sizeof(float) : 0;
    const double key_bytes = 2.0 * a->kv.head_dim * a->kv.elem_bytes + scale_bytes;
    double best = 1e30;
    int chunk = ceil_div(len->longest, unit) * unit;
    for (int pieces = 1; pieces <= PIECES_MAX; pieces++) {
        const int c = ceil_div(ceil_div(len->longest, pieces), unit) * unit;
        if (pieces > 1 && ceil_div(len->longest, c) < pieces) continue;
        long n = 0;
        int most = 1;
        for (int i = 0; i < s->n_decode; i++) {
            const int keys = s->kv_len[i] - first_key(a, s->kv_len[i], tile);
            const int k = ceil_div(keys, c);
            n += (long)k * row_items(a);
            most = std::max(most, k);
        }
        if (n > bound) break;
        const int piece = std::min(c, len->longest);
        const double busiest =
            n <= a->n_sms ? piece : std::max((double)piece, len->total / a->n_sms + 0.4 * piece);
        const double t = std::max(len->total * key_bytes / DEVICE_BYTES_A_US,
                                  busiest * key_bytes / SM_BYTES_A_US) +
                         (most > 1 ? 1.2 + 0.025 * most : 0.0) + 0.05 * (double)n / a->n_sms;
        if (t < best) {
            best = t;
            chunk = c;
        }
    }
    return chunk;
}

/* Appends the items of a row; returns the slots used so far. */
static int add_row(const attention *a, const step *s, int row, int chunk, int unit, int tile,
                   attention_item *items, int *n_items, int slots) {
    const int kv_len = s->kv_len[row], low = first_key(a, kv_len, tile);
    const int keys = kv_len - low;
    int pieces = ceil_div(keys, chunk);
    const int each = ceil_div(ceil_div(keys, pieces), unit) * unit;
    pieces = ceil_div(keys, each);
    for (int h = 0; h < a->kv.n_kv_heads; h++) {
        for (int g = 0; g < a->group; g += 8) {
            for (int j = 0; j < pieces; j++) {
                attention_item *it = &items[(*n_items)++];
                it->row = row;
                it->kv_head = h;
                it->head = h * a->group + g;
                it->n_heads = std::min(8, a->group - g);
                it->k0 = low + j * each;
                it->k1 = std::min(kv_len, low + (j + 1) * each);
                it->i_block = s->block_start[row];
                it->kv_len = kv_len;
                it->slot = slots + j;
                it->slot0 = slots;
                it->n_split = pieces;
                it->next = -1;
            }
            if (pieces > 1) slots += pieces;
        }
    }
    return slots;
}

/* Rows by keys, longest first; rows of equal length in order. A counting sort would need memory of
 * the context's size, and a comparison sort of at most LIMIT_SEQUENCES ints is microseconds. */
static void order_rows(const step *s, int32_t *order) {
    for (int i = 0; i < s->n_decode; i++) order[i] = i;
    std::sort(order, order + s->n_decode, [s](int32_t x, int32_t y) {
        return s->kv_len[x] != s->kv_len[y] ? s->kv_len[x] > s->kv_len[y] : x < y;
    });
}

/* The grid is fixed by the bucket, and every block of it reads the item of its own number: blocks
 * behind the last item find padding; items that only `next` leads to lie behind the grid. Returns
 * the items to upload. */
static int place_items(attention_item *items, int n, int blocks, int grid) {
    const int n_next = n - blocks;
    memmove(items + grid, items + blocks, (size_t)n_next * sizeof *items);
    for (int i = blocks; i < grid; i++) items[i].row = -1;
    for (int i = 0; i < n_next; i++) { /* equal lengths: round robin is as good as a heap */
        attention_item *before = i < blocks ? &items[i] : &items[grid + i - blocks];
        before->next = grid + i;
    }
    return grid + n_next;
}

static void plan_decode(const attention *a, const step *s, int n_decode_bucket, void *buffer,
                        attention_plan *p) {
    const int bucket = n_decode_bucket ? n_decode_bucket : s->n_decode;
    const int bound = attention_decode_grid(a, bucket);
    p->decode_variant = bucket * row_items(a) <= a->n_sms ? 0 : 1;
    const attention_kernel *k = &a->decode[p->decode_variant];
    const int unit = std::max(k->warps * k->tile_keys, a->kv.block_tokens);
    attention_item *items = (attention_item *)((char *)buffer + p->items_offset);
    const lengths len = measure(a, s, k->tile_keys);
    const int chunk = choose_chunk(a, s, &len, unit, k->tile_keys, bound);
    int32_t order[ATTENTION_SEQS_MAX];
    order_rows(s, order);
    int n = 0, slots = 0;
    for (int i = 0; i < s->n_decode; i++) {
        slots = add_row(a, s, order[i], chunk, unit, k->tile_keys, items, &n, slots);
    }
    assert(n <= bound && slots <= bound);
    const bool chain = len.equal && len.longest <= CHAIN_KEYS_MAX && n > k->resident;
    const int blocks = chain ? k->resident : n;
    p->decode_grid = n_decode_bucket ? bound : blocks;
    p->n_items = place_items(items, n, blocks, p->decode_grid);
    p->bytes = align_up((size_t)p->n_items * sizeof *items);
}

extern "C" status attention_plan_make(const attention *a, const step *s, int n_decode_bucket,
                                      void *buffer, attention_plan *p) {
    if (s->n_seqs > a->n_seqs_max || s->n_tokens > a->n_tokens_max || s->n_tokens < 1 ||
        (n_decode_bucket && s->n_decode > n_decode_bucket) || n_decode_bucket > a->n_seqs_max) {
        return E_INVAL;
    }
    memset(p, 0, sizeof *p);
    if (uses_decode(a) && s->n_decode > 0) {
        p->n_decode = s->n_decode;
        plan_decode(a, s, n_decode_bucket, buffer, p);
    }
    if (a->kv.tensor_core && p->n_decode < s->n_seqs) {
        p->tiles_offset = p->bytes;
        /* Only a step of decode rows alone is ever captured. */
        const bool captured = !uses_decode(a) && s->n_decode == s->n_seqs;
        attention_plan_tiles(a, s, p->n_decode, captured ? n_decode_bucket : 0, buffer, p);
        p->bytes += align_up((size_t)p->n_tiles * sizeof(attention_tile));
    }
    return OK;
}
