/* The host's plan of the tile kernels: packed rows of each (sequence, KV head) in tiles.
 *
 * Whole tiles go longest first. The wgmma kernel's blocks are persistent: each tile goes to the
 * least loaded block, so that all end together; where there are fewer than two tiles a
 * multiprocessor (few rows behind a long context), long ones are cut along their keys: of a few
 * piece sizes the one with the shortest makespan wins. Unit of cost: one key tile; a tile adds 1.5
 * for its start, a piece 2 more for the merge (measured on the H200). */
#include <assert.h>

#include <algorithm>

#include "kernels/cuda/attention_internal.h"

#define TILE_COST  1.5f
#define PIECE_COST 3.5f
#define NO_CUT     (1 << 30)

enum { BLOCKS_MAX = 1024, PIECE_MIN = 4, SLOTS_A_BLOCK = 4 };

static int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

/* mma.sync: tiles are cut into chunks while all of them run at once. */
static int pieces_max(const attention *a) {
    return 2 * a->n_sms;
}

size_t attention_tiles_max(const attention *a) {
    if (!a->kv.tensor_core) return 0;
    const size_t packed = (size_t)a->n_tokens_max * (size_t)a->group;
    const size_t rows = (size_t)a->tile[0].rows;
    return (packed / rows + (size_t)a->n_seqs_max + 1) * (size_t)a->kv.n_kv_heads +
           (size_t)(SLOTS_A_BLOCK * a->n_sms);
}

int attention_tile_slots_max(const attention *a) {
    return a->tile[1].fn ? SLOTS_A_BLOCK * a->n_sms : a->tile[0].chunk ? pieces_max(a) : 0;
}

struct builder {
    const attention *a;
    const step *s;
    int first_seq;
    attention_tile *tile;
    int n, n_slots;
    int chunk; /* > 0: cut at its multiples, see attention_tile.cuh */
};

static float cost_of(const attention_tile &t) {
    return (float)(t.tile_end - t.tile_begin) + (t.n_split > 1 ? PIECE_COST : TILE_COST);
}

/* Key tiles [begin, end) that packed rows [packed0, packed0 + rows) of a sequence see. */
static void key_range(const attention *a, int n_rows, int kv_len, int packed0, int *begin,
                      int *end) {
    const int rows = a->tile[0].rows, keys = a->tile[0].keys;
    const int before = kv_len - n_rows;
    const int first = before + packed0 / a->group;
    const int last = before + (std::min(packed0 + rows, n_rows * a->group) - 1) / a->group;
    *begin = a->window > 0 && first + 1 > a->window ? (first + 1 - a->window) / keys : 0;
    *end = ceil_div(last + 1, keys);
}

/* Pieces of key tiles [begin, end): of about goal tiles each, or (chunk > 0) one for each chunk. */
static int count_pieces(const builder *b, int begin, int end, int goal) {
    const int k = end - begin, chunk = b->chunk;
    if (chunk > 0) return ceil_div(end, chunk) - begin / chunk;
    return (long long)k * 4 > (long long)goal * 5 ? ceil_div(k, goal) : 1;
}
/* First key tile of piece j of n; j == n: the end. */
static int piece_begin(const builder *b, int begin, int end, int j, int n) {
    if (b->chunk > 0) {
        return j == 0 ? begin : std::min(end, (begin / b->chunk + j) * b->chunk);
    }
    return begin + (int)((long long)(end - begin) * j / n);
}

/* All tiles, those over 5/4 goal cut into pieces of about goal key tiles (chunk > 0: all of them
 * into chunks). False: too many pieces. */
static bool cut_tiles(builder *b, int goal) {
    const attention *a = b->a;
    b->n = b->n_slots = 0;
    for (int q = b->first_seq; q < b->s->n_seqs; q++) {
        const int row0 = b->s->seq_start[q], n_rows = b->s->seq_start[q + 1] - row0;
        const int kv_len = b->s->kv_len[q];
        for (int packed0 = 0; packed0 < n_rows * a->group; packed0 += a->tile[0].rows) {
            int begin, end;
            key_range(a, n_rows, kv_len, packed0, &begin, &end);
            const int pieces = count_pieces(b, begin, end, goal);
            for (int h = 0; h < a->kv.n_kv_heads; h++) {
                if (pieces > 1 && b->n_slots + pieces > attention_tile_slots_max(a)) return false;
                if (b->chunk > 0 && b->n + pieces > pieces_max(a)) return false;
                for (int j = 0; j < pieces; j++) {
                    attention_tile *t = &b->tile[b->n++];
                    t->row0 = row0;
                    t->kv_head = h;
                    t->packed0 = packed0;
                    t->next = -1;
                    t->n_rows = n_rows;
                    t->kv_len = kv_len;
                    t->i_block = b->s->block_start[q];
                    t->tile_begin = piece_begin(b, begin, end, j, pieces);
                    t->tile_end = piece_begin(b, begin, end, j + 1, pieces);
                    t->slot = b->n_slots + j;
                    t->slot0 = b->n_slots;
                    t->n_split = pieces;
                }
                if (pieces > 1) b->n_slots += pieces;
            }
        }
    }
    std::sort(b->tile, b->tile + b->n, [](const attention_tile &x, const attention_tile &y) {
        const float cx = cost_of(x), cy = cost_of(y);
        if (cx != cy) return cx > cy;
        if (x.row0 != y.row0) return x.row0 < y.row0;
        if (x.packed0 != y.packed0) return x.packed0 < y.packed0;
        return x.kv_head != y.kv_head ? x.kv_head < y.kv_head : x.slot < y.slot;
    });
    return true;
}

struct load {
    float cost;
    int block;
};
static bool later(const load &x, const load &y) {
    return x.cost != y.cost ? x.cost > y.cost : x.block > y.block;
}

/* Deals the tiles to blocks, each to the least loaded; link: into chains. Returns the makespan. */
static float deal(builder *b, int n_blocks, bool link) {
    load heap[BLOCKS_MAX];
    int tail[BLOCKS_MAX];
    float makespan = 0.0f;
    for (int i = 0; i < n_blocks; i++) {
        heap[i] = {cost_of(b->tile[i]), i};
        tail[i] = i;
        makespan = std::max(makespan, heap[i].cost);
    }
    std::make_heap(heap, heap + n_blocks, later);
    for (int i = n_blocks; i < b->n; i++) {
        std::pop_heap(heap, heap + n_blocks, later);
        load *least = &heap[n_blocks - 1];
        least->cost += cost_of(b->tile[i]);
        makespan = std::max(makespan, least->cost);
        if (link) {
            b->tile[tail[least->block]].next = i;
            tail[least->block] = i;
        }
        std::push_heap(heap, heap + n_blocks, later);
    }
    return makespan;
}

/* Piece size for few tiles; NO_CUT when cutting does not pay. */
static int choose_goal(builder *b, int n_blocks_max) {
    static const float SHARES[] = {1.0f, 1.15f, 1.4f, 2.0f};
    if (!b->a->tile[1].fn || b->n >= 2 * n_blocks_max) return NO_CUT;
    long long total = 0;
    for (int i = 0; i < b->n; i++) total += b->tile[i].tile_end - b->tile[i].tile_begin;
    int best = NO_CUT;
    float least = deal(b, std::min(n_blocks_max, b->n), false);
    for (float share : SHARES) {
        const int goal =
            std::max((int)PIECE_MIN, (int)(share * (float)total / (float)n_blocks_max) + 1);
        if (!cut_tiles(b, goal)) continue;
        const float m = deal(b, std::min(n_blocks_max, b->n), false);
        if (m < least) {
            least = m;
            best = goal;
        }
    }
    return best;
}

/* Blocks of a captured grid: `bucket` sequences of one row, and room to cut them. */
static int captured_grid(const attention *a, int bucket) {
    const int tiles = bucket * ceil_div(a->group, a->tile[0].rows) * a->kv.n_kv_heads;
    return a->tile[0].chunk > 0 ? std::max(tiles, pieces_max(a)) : tiles;
}

void attention_plan_tiles(const attention *a, const step *s, int first_seq, int bucket,
                          void *buffer, attention_plan *p) {
    builder b = {a, s, first_seq, (attention_tile *)((char *)buffer + p->tiles_offset), 0, 0, 0};
    cut_tiles(&b, NO_CUT);
    int n_blocks = b.n;
    if (a->tile_chains) {
        const int n_max = std::min(a->n_sms, (int)BLOCKS_MAX);
        const int goal = choose_goal(&b, n_max);
        if (a->tile[1].fn) cut_tiles(&b, goal);
        n_blocks = std::min(n_max, b.n);
        deal(&b, n_blocks, true);
    } else if (a->tile[0].chunk > 0) { /* the bits do not depend on whether tiles are cut */
        b.chunk = a->tile[0].chunk;
        if (!cut_tiles(&b, NO_CUT)) {
            b.chunk = 0;
            cut_tiles(&b, NO_CUT);
        }
        n_blocks = b.n;
    }
    if (bucket > 0) {
        n_blocks = captured_grid(a, bucket);
        assert(b.n <= n_blocks);
        for (; b.n < n_blocks; b.n++) b.tile[b.n].row0 = -1;
    }
    assert((size_t)b.n <= attention_tiles_max(a));
    p->tile_grid = n_blocks;
    p->n_tiles = b.n;
    p->tiles_split = b.n_slots > 0;
}
