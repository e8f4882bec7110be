/* Inside of the tokenizer, shared by tokenizer*.c only.
 *
 * Vocabulary: flat arrays by id. `spelling` is the text in the file, `piece` the bytes that a token
 * stands for. Both families merge with the same heap (tokenizer_merge.c); they differ in how a pair
 * is looked up: byte-level BPE by (left id, right id) in `merges`, SentencePiece by the bytes of
 * the pair in `by_piece`. */
#ifndef INFERD_ENGINE_TOKENIZER_INTERNAL_H
#define INFERD_ENGINE_TOKENIZER_INTERNAL_H

#include "engine/pretokenize.h"
#include "engine/text_map.h"
#include "engine/tokenizer.h"

enum {
    TOKEN_BYTES_MAX = 4096, /* of a spelling */
    SPM_PIECE_BYTES_MAX = 1024,
    SPECIAL_BYTES_MAX = 512
};

/* Strings by id: string i is bytes[start[i]..start[i + 1]). */
typedef struct string_list {
    char *bytes;     /* owned */
    uint32_t *start; /* owned, n + 1 */
} string_list;
static inline const char *string_at(const string_list *l, int32_t i, size_t *len) {
    *len = l->start[i + 1] - l->start[i];
    return l->bytes + l->start[i];
}

/* Hash set of ids of a string_list, open addressing. The seed is random, so a file cannot be made
 * to collide. */
typedef struct string_index {
    uint64_t *slots; /* owned; high 32 bits of the hash, id + 1; 0 is free */
    size_t mask;
    uint64_t seed;
} string_index;
BASE_MUST_USE status string_index_init(string_index *x, size_t n);
void string_index_deinit(string_index *x);
/* For many look-ups in a row: the hash first, then three calls that fetch what a look-up will touch
 * (slot, place, bytes), a batch at a time, so that the memory's latencies overlap. */
uint64_t string_index_hash(const string_index *x, const char *s, size_t len);
void string_index_fetch(const string_index *x, const string_list *l, uint64_t hash, int stage);
int32_t string_index_find_hashed(const string_index *x, const string_list *l, const char *s,
                                 size_t len, uint64_t hash);
/* The id with these bytes, or -1. */
int32_t string_index_find(const string_index *x, const string_list *l, const char *s, size_t len);
/* Adds n <= INDEX_BATCH ids in order, as one look-up after another would, but overlapped. Returns
 * how many were added: fewer than n when ids[result] has the bytes of *other, which is in. */
enum { INDEX_BATCH = 32 };
int string_index_add(string_index *x, const string_list *l, const int32_t *ids, int n,
                     int32_t *other);

typedef struct merge_slot {
    uint32_t left, right; /* left is an id + 1, 0: free */
    uint32_t rank;
    int32_t id; /* of the result */
} merge_slot;
typedef struct merge_table {
    merge_slot *slots; /* owned */
    size_t mask;
    uint64_t seed;
} merge_table;
BASE_MUST_USE status merge_table_init(merge_table *m, size_t n);
void merge_table_deinit(merge_table *m);
/* The first rank of a pair wins. */
void merge_table_add(merge_table *m, int32_t left, int32_t right, uint32_t rank, int32_t id);
void merge_table_fetch(const merge_table *m, int32_t left, int32_t right);
const merge_slot *merge_table_find(const merge_table *m, int32_t left, int32_t right);

/* Special tokens in byte order of their spelling. */
typedef struct special {
    const char *s; /* into spelling */
    uint32_t len;
    int32_t id;
    bool control; /* found in markup only; else (user-defined) in any text */
    bool eats_space;
} special;
typedef struct special_list {
    special *v; /* owned, sorted */
    size_t n;
    size_t first[257];   /* v[first[b]..first[b + 1]) start with byte b */
    uint8_t starts[256]; /* 1: a special starts with the byte; 2: a user-defined one does */
    bool any_user_defined;
} special_list;

struct tokenizer {
    bool spm;
    pretokenizer pre; /* BPE */
    bool nfc, ignore_merges, space_prefix, add_bos, add_eos;
    bool unused_pieces; /* by_piece has UNUSED tokens */
    int n_vocab;
    uint8_t *type; /* [n_vocab] token_type; owned, as every array here */
    string_list spelling, piece;
    string_index by_piece; /* what text can become: NORMAL tokens, in SPM also UNUSED ones on the
                              way; SPM, and BPE with ignore_merges */
    size_t piece_max;      /* longest piece in by_piece */
    merge_table merges;    /* BPE */
    uint32_t *rank; /* SPM [n_vocab]: place of the score, best first; equal scores are equal */
    int32_t byte_id[256]; /* -1: none */
    int32_t unk, bos, eos;
    special_list specials;
    int32_t *eog; /* [n_eog] ascending */
    int n_eog;
    uint8_t *padding; /* [n_vocab], or NULL */
    char name[32];
};

/* tokenizer_vocab.c: reads the file's arrays. */
BASE_MUST_USE status vocab_load(tokenizer *t, const gguf *g, error *err);
/* tokenizer_special.c: the special tokens, the end-of-generation set, the padding rows. by_spelling
 * indexes all tokens. */
BASE_MUST_USE status special_load(tokenizer *t, const gguf *g, const string_index *by_spelling,
                                  error *err);
/* The longest special token at text[pos], NULL if none. A control token must end at or before
 * markup_end. */
const special *special_match(const special_list *l, const char *text, size_t len, size_t pos,
                             size_t markup_end);

/* tokenizer_merge.c: the symbols of one word, at the byte offsets where they start. */
typedef struct symbol {
    int32_t id; /* -1: no token */
    uint32_t next;
} symbol;
typedef struct symbol_pair { /* this symbol and the next */
    uint32_t rank;
    uint32_t prev; /* of this symbol */
} symbol_pair;
typedef struct merger {
    symbol
        *symbols; /* [capacity]; owned, as every array here. Two arrays, because one of twice the */
    symbol_pair *pairs; /* size passes the size from which malloc maps fresh pages every time */
    size_t capacity;    /* bytes of text that fit */
    struct merge_queue *queue; /* of long words; made at the first one */
    uint16_t *left_bytes;      /* [n_vocab] of UNUSED pieces: the left half's; made when needed */
} merger;
void merger_deinit(merger *m);
BASE_MUST_USE status merger_reserve(merger *m, size_t bytes);
/* Merges word[0..len), whose n symbols are linked from offset `first` with ids set; the last
 * symbol's next is len. Afterwards the list holds the result. */
BASE_MUST_USE status merger_run(merger *m, const tokenizer *t, const char *word, size_t len,
                                size_t first, size_t n);

#define NO_RANK UINT32_MAX /* the pair does not merge */

/* tokenizer_queue.c: offsets by (rank, offset), lowest first. Ranks that were taken only grow, so
 * offsets wait in one list a rank, and only what is pushed with a rank already reached needs a
 * heap. */
typedef struct merge_queue merge_queue;
BASE_MUST_USE status merge_queue_open(merge_queue **out);
void merge_queue_close(merge_queue *q);
BASE_MUST_USE status merge_queue_push(merge_queue *q, uint32_t rank, uint32_t offset);
/* The lowest; false: empty. E_NOMEM in *st. */
bool merge_queue_pop(merge_queue *q, uint32_t *rank, uint32_t *offset, status *st);
/* Ready for another word. */
void merge_queue_reset(merge_queue *q);
#endif
