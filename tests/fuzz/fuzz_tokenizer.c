/* Text -> ids -> text over fixed vocabularies. First byte: which vocabulary, and flags; then parts
 * of the text, each ended by 0xFF, alternately literal and not. With every byte in the vocabulary,
 * literal text must come back as it was. */
#include "fuzz.h"
#include "vocabularies.h"

enum { N_VOCABULARIES = 5, PARTS_MAX = 8 };

static const tokenizer *vocabulary(int i) {
    static tokenizer *t[N_VOCABULARIES]; /* kept for the life of the process, reachable */
    static const char *const pre[] = {"gpt-2", "llama-bpe", "smollm", "tekken"};
    if (t[i] == NULL) t[i] = i == 0 ? vocabulary_spm() : vocabulary_bpe(pre[i - 1]);
    return t[i];
}

static bool comes_back(const tokenizer *t, const token_list *l, const char *text, size_t len,
                       bool spm) {
    text_buffer out = {0};
    detokenizer d;
    detokenizer_init(&d, t, false, spm);
    for (size_t i = 0; i < l->n; i++)
        if (detokenizer_push(&d, l->id[i], &out) != OK) abort();
    if (detokenizer_finish(&d, &out) != OK) abort();
    const bool same = out.len == len && (len == 0 || memcmp(out.s, text, len) == 0);
    text_buffer_free(&out);
    return same;
}

static void check_offsets(const token_list *l, size_t len) {
    for (size_t i = 0; i < l->n; i++) {
        assert(l->start[i] <= l->end[i] && l->end[i] <= len);
        assert(i == 0 || l->start[i] >= l->start[i - 1]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    text_part parts[PARTS_MAX];
    token_list ids = {.with_offsets = true};
    int n = 0;
    bool all_literal = true;
    if (size < 1) return 0;
    const int which = data[0] % N_VOCABULARIES;
    const bool special = (data[0] & 0x80) != 0, first_literal = (data[0] & 0x40) == 0;
    const tokenizer *t = vocabulary(which);
    uint8_t *copy = fuzz_copy(data + 1, size - 1);
    const uint8_t *p = copy;
    char *whole = (char *)fuzz_copy(copy, size - 1);
    size_t left = size - 1, total = 0;
    while (left > 0 && n < PARTS_MAX) {
        text_part *part = &parts[n];
        part->s = fuzz_take(&p, &left, 0xFF, &part->len);
        part->literal = (n % 2 == 0) == first_literal;
        all_literal = all_literal && part->literal;
        memcpy(whole + total, part->s, part->len);
        total += part->len;
        n++;
    }
    const status s = tokenizer_encode(t, parts, n, special ? TOKENIZE_ADD_SPECIAL : 0, &ids);
    assert(s == OK || s == E_NOMEM);
    for (size_t i = 0; i < ids.n; i++) assert(ids.id[i] >= 0 && ids.id[i] < tokenizer_n_vocab(t));
    check_offsets(&ids, total);
    /* SentencePiece writes a space as U+2581, which a text may hold itself. */
    bool ambiguous = false;
    for (size_t i = 0; which == 0 && i + 3 <= total; i++)
        ambiguous = ambiguous || memcmp(whole + i, "\xE2\x96\x81", 3) == 0;
    if (s == OK && all_literal && !special && !ambiguous && utf8_valid(whole, total))
        assert(comes_back(t, &ids, whole, total, which == 0));
    token_list_free(&ids);
    free(whole);
    free(copy);
    return 0;
}
