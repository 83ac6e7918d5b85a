/* Attention within the sequences of a packed row, in bfloat16, for processors with AVX512-BF16.

   Keys are laid out once for each sequence and key-value head: dot products of two numbers at a
   time want them transposed, 16 keys side by side. Six rows of queries then meet all keys that any
   of them sees; their scores, in float32, stay in the first cache. Weights are rounded to bfloat16
   for the product with the values, and the sums are of the rounded weights.

   A row's result depends on its own sequence alone: the order of its sums is fixed by the places
   of the keys in it. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 6     /* of queries at once */
#define LANES 16   /* float32 numbers of a register */
#define CHUNK 128  /* queries of a task */
#define LOG2E 1.44269504088896340736f

typedef uint16_t half; /* a bfloat16 number */

typedef struct {
    const half *query, *key, *value;
    half *out;
    int64_t query_token, query_head; /* numbers from one to the next */
    int64_t key_token, key_head, value_token, value_head;
    int64_t heads, kinds, width, value_width;
    int64_t sequences;
    const int64_t *asking;  /* the row of each sequence's first query */
    const int64_t *answers; /* the row of its result */
    const int64_t *own;     /* the row of its first own key */
    const int64_t *length;
    const int64_t *earlier; /* the row of the first key that stands before its own */
    const int64_t *before;  /* and how many do */
    int64_t window; /* how many keys back a query sees; below 0: all */
    int64_t causal;
    float scale;
    int32_t threads;
} Call;

typedef struct {
    int64_t sequence, kind, first, count; /* queries from `first` */
} Task;

typedef struct {
    uint32_t *keys;   /* [block of 16 keys][pair of numbers][16] */
    uint32_t *values; /* [pair of keys][number], two keys' side by side */
    float *scores;    /* [ROWS][keys] */
    half *weights;    /* [ROWS][keys] */
} Room;

static inline int64_t up(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* The row of the key at a place of a sequence. */
static inline int64_t row_of(const Call *c, int64_t sequence, int64_t place) {
    int64_t before = c->before[sequence];
    return place < before ? c->earlier[sequence] + place : c->own[sequence] + place - before;
}

static inline void transpose(__m512i r[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Lay out the keys at places low to high. */
static void lay_keys(const Call *c, int64_t sequence, int64_t kind, int64_t low, int64_t high, uint32_t *to) {
    int64_t pairs = c->width / 2;
    for (int64_t at = low; at < high; at += LANES) {
        for (int64_t pair = 0; pair < pairs; pair += LANES) {
            __mmask16 some = (__mmask16)((1u << least(LANES, pairs - pair)) - 1);
            __m512i rows[16];
            for (int i = 0; i < 16; i++) {
                const half *from = c->key + kind * c->key_head;
                rows[i] = at + i < high
                    ? _mm512_maskz_loadu_epi32(some, from + row_of(c, sequence, at + i) * c->key_token + 2 * pair)
                    : _mm512_setzero_si512();
            }
            transpose(rows);
            for (int i = 0; i < least(LANES, pairs - pair); i++)
                _mm512_store_si512(to + ((at - low) / LANES * pairs + pair + i) * LANES, rows[i]);
        }
    }
}

/* Lay out the values at places low to high, up to a whole block of keys. */
static void lay_values(const Call *c, int64_t sequence, int64_t kind, int64_t low, int64_t high, uint32_t *to) {
    const half *from = c->value + kind * c->value_head;
    int64_t width = c->value_width;
    for (int64_t at = low; at < low + up(high - low, LANES); at += 2) {
        const half *one = at < high ? from + row_of(c, sequence, at) * c->value_token : NULL;
        const half *two = at + 1 < high ? from + row_of(c, sequence, at + 1) * c->value_token : NULL;
        for (int64_t i = 0; i < width; i += LANES) {
            __m256i zero = _mm256_setzero_si256();
            __m512i a = _mm512_cvtepu16_epi32(one ? _mm256_loadu_si256((const __m256i *)(one + i)) : zero);
            __m512i b = _mm512_cvtepu16_epi32(two ? _mm256_loadu_si256((const __m256i *)(two + i)) : zero);
            _mm512_store_si512(to + (at - low) / 2 * width + i, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
        }
    }
}

/* Scores of six rows with `blocks` blocks of 16 keys; `keys` are those of the first block. */
static inline __attribute__((always_inline)) void score(
    const uint32_t *query[ROWS], const uint32_t *keys, int64_t pairs, const int blocks, float scale,
    float *to, int64_t stride) {
    __m512 sums[ROWS][4];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) sums[r][b] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs; pair++) {
        __m512bh key[4];
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++)
            key[b] = (__m512bh)_mm512_load_si512(keys + (b * pairs + pair) * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            __m512bh asked = (__m512bh)_mm512_set1_epi32((int)query[r][pair]);
#pragma GCC unroll 4
            for (int b = 0; b < blocks; b++) sums[r][b] = _mm512_dpbf16_ps(sums[r][b], asked, key[b]);
        }
    }
    __m512 by = _mm512_set1_ps(scale);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++)
            _mm512_store_ps(to + r * stride + b * LANES, _mm512_mul_ps(sums[r][b], by));
}

static inline __m512 exp2_of(__m512 x) {
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, whole);
    __m512 sum = _mm512_set1_ps(1.5403530393381609e-4f);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.3333558146428443e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(9.618129107628477e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(5.550410866482158e-2f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(2.402265069591007e-1f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(6.931471805599453e-1f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

/* Which of the 16 places from `at` lie from `first` to before `end`. */
static inline __mmask16 between(int64_t at, int64_t first, int64_t end) {
    __mmask16 seen = 0xffff;
    if (at < first) seen &= (__mmask16)(first - at >= LANES ? 0 : 0xffffu << (first - at));
    if (at + LANES > end) seen &= (__mmask16)(end <= at ? 0 : 0xffffu >> (LANES - (end - at)));
    return seen;
}

/* Turn a row's scores from `first` to `end` into weights, and all others from `low` to `high` into
   0; return the inverse of their sum. */
static float weigh(const float *scores, half *weights, int64_t first, int64_t end, int64_t low, int64_t high) {
    __m512 highest = _mm512_set1_ps(-INFINITY);
    for (int64_t at = low; at < high; at += LANES) {
        __mmask16 seen = between(at, first, end);
        highest = _mm512_mask_max_ps(highest, seen, highest, _mm512_load_ps(scores + at));
    }
    __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
    __m512 sums = _mm512_setzero_ps();
    for (int64_t at = low; at < high; at += LANES) {
        __mmask16 seen = between(at, first, end);
        __m512 weight = _mm512_maskz_mov_ps(seen, exp2_of(_mm512_sub_ps(_mm512_load_ps(scores + at), top)));
        __m256i rounded = (__m256i)_mm512_cvtneps_pbh(weight);
        _mm256_store_si256((__m256i *)(weights + at), rounded);
        sums = _mm512_add_ps(sums, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16)));
    }
    return 1.0f / _mm512_reduce_add_ps(sums);
}

/* Weighted sums of `blocks` blocks of 16 numbers of the values, of six rows. */
static inline __attribute__((always_inline)) void gather(
    const half *weights, int64_t stride, const uint32_t *values, int64_t width, int64_t low, int64_t high,
    const int blocks, const float by[ROWS], half *to[ROWS], int rows) {
    __m512 sums[ROWS][4];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) sums[r][b] = _mm512_setzero_ps();
    for (int64_t at = low; at < high; at += 2) {
        __m512bh value[4];
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++)
            value[b] = (__m512bh)_mm512_load_si512(values + at / 2 * width + b * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            uint32_t pair;
            memcpy(&pair, weights + r * stride + at, 4);
            __m512bh weight = (__m512bh)_mm512_set1_epi32((int)pair);
#pragma GCC unroll 4
            for (int b = 0; b < blocks; b++) sums[r][b] = _mm512_dpbf16_ps(sums[r][b], weight, value[b]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
        if (r < rows)
#pragma GCC unroll 4
            for (int b = 0; b < blocks; b++) {
                __m512 scaled = _mm512_mul_ps(sums[r][b], _mm512_set1_ps(by[r]));
                _mm256_storeu_si256((__m256i *)(to[r] + b * LANES), (__m256i)_mm512_cvtneps_pbh(scaled));
            }
}

/* The first key that a query at a place sees, and the one after the last of `all`. */
static inline int64_t first_seen(const Call *c, int64_t place) {
    return c->window < 0 ? 0 : most(0, place - c->window + (c->causal ? 1 : 0));
}

static inline int64_t end_seen(const Call *c, int64_t place, int64_t all) {
    return c->causal ? place + 1 : c->window < 0 ? all : least(all, place + c->window + 1);
}

static void attend(const Call *c, const Task *task, Room *room) {
    int64_t before = c->before[task->sequence], length = c->length[task->sequence];
    int64_t shared = c->heads / c->kinds, width = c->value_width, pairs = c->width / 2;
    int64_t first = before + task->first, last = first + task->count - 1, all = before + length;
    int64_t low = first_seen(c, first), high = end_seen(c, last, all);
    int64_t stride = up(high - low, LANES);
    lay_keys(c, task->sequence, task->kind, low, high, room->keys);
    lay_values(c, task->sequence, task->kind, low, high, room->values);
    int64_t rows = task->count * shared;
    for (int64_t row = 0; row < rows; row += ROWS) {
        int real = (int)least(ROWS, rows - row);
        const uint32_t *query[ROWS];
        half *to[ROWS];
        int64_t begin[ROWS], end[ROWS], from = stride, until = 0;
        for (int r = 0; r < ROWS; r++) {
            int64_t one = row + (r < real ? r : 0), place = first + one / shared;
            int64_t head = task->kind * shared + one % shared;
            int64_t at = task->first + one / shared, asking = c->asking[task->sequence] + at;
            query[r] = (const uint32_t *)(c->query + asking * c->query_token + head * c->query_head);
            to[r] = c->out + ((c->answers[task->sequence] + at) * c->heads + head) * width;
            begin[r] = first_seen(c, place) - low;
            end[r] = end_seen(c, place, all) - low;
            from = least(from, begin[r] / LANES * LANES);
            until = most(until, up(end[r], LANES));
        }
        int64_t at = from;
        for (; at + 4 * LANES <= until; at += 4 * LANES)
            score(query, room->keys + at * pairs, pairs, 4, c->scale * LOG2E, room->scores + at, stride);
        for (; at + 2 * LANES <= until; at += 2 * LANES)
            score(query, room->keys + at * pairs, pairs, 2, c->scale * LOG2E, room->scores + at, stride);
        for (; at < until; at += LANES)
            score(query, room->keys + at * pairs, pairs, 1, c->scale * LOG2E, room->scores + at, stride);
        float by[ROWS];
        for (int r = 0; r < ROWS; r++)
            by[r] = weigh(room->scores + r * stride, room->weights + r * stride, begin[r], end[r], from, until);
        int64_t number = 0;
        for (; number + 4 * LANES <= width; number += 4 * LANES) {
            half *part[ROWS];
            for (int r = 0; r < ROWS; r++) part[r] = to[r] + number;
            gather(room->weights, stride, room->values + number, width, from, until, 4, by, part, real);
        }
        for (; number < width; number += LANES) {
            half *part[ROWS];
            for (int r = 0; r < ROWS; r++) part[r] = to[r] + number;
            gather(room->weights, stride, room->values + number, width, from, until, 1, by, part, real);
        }
    }
}

static void *aligned(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

/* Attend in all sequences; 0, or 1 where memory is lacking. */
int embedlm_attend(const Call *c) {
    int64_t tasks = 0, longest = 0;
    for (int64_t s = 0; s < c->sequences; s++) {
        tasks += c->kinds * ((c->length[s] + CHUNK - 1) / CHUNK);
        longest = most(longest, c->before[s] + c->length[s]);
    }
    Task *list = malloc((size_t)tasks * sizeof(Task));
    if (!list) return 1;
    int64_t number = 0;
    for (int64_t s = c->sequences - 1; s >= 0; s--) /* the longest stand last */
        for (int64_t kind = 0; kind < c->kinds; kind++)
            for (int64_t first = 0; first < c->length[s]; first += CHUNK)
                list[number++] = (Task){s, kind, first, least(CHUNK, c->length[s] - first)};
    int64_t next = 0, done = 0;
    int64_t keys = up(longest, LANES);
#pragma omp parallel num_threads(c->threads) if (c->threads > 1)
    {
        Room room = {
            aligned((size_t)(keys * c->width) * 2),
            aligned((size_t)(keys * c->value_width) * 2),
            aligned((size_t)(keys * ROWS) * sizeof(float)),
            aligned((size_t)(keys * ROWS) * sizeof(half)),
        };
        if (room.keys && room.values && room.scores && room.weights)
            for (int64_t task; (task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < tasks;) {
                attend(c, &list[task], &room);
                __atomic_fetch_add(&done, 1, __ATOMIC_RELAXED);
            }
        free(room.keys), free(room.values), free(room.scores), free(room.weights);
    }
    free(list);
    return done < tasks;
}
