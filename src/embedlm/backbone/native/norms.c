/* Norms by the root mean square, of rows in bfloat16, each of which is read from memory once and
   written once. Numbers are rounded where the networks' own code rounds them. For processors with
   AVX512-BF16. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define LANES 16

typedef uint16_t half; /* a bfloat16 number */

static inline __m512 wide(__mmask16 some, const half *from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from)), 16));
}

static inline void narrow(half *to, __mmask16 some, __m512 x) {
    _mm256_mask_storeu_epi16(to, some, (__m256i)_mm512_cvtneps_pbh(x));
}

/* The number that a register's numbers are in bfloat16. */
static inline __m512 rounded(__m512 x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16));
}

static inline __mmask16 upto(int64_t left) { return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1); }

/* Norms of rows: 0, the weight multiplies what is rounded; 1, it is rounded last; 2, likewise, and
   the weight is counted from 1. */
void embedlm_norm(
    const half *states, const half *weight, half *out, int64_t rows, int64_t width, float epsilon,
    int32_t form, int32_t threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const half *x = states + row * width;
        half *to = out + row * width;
        __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int64_t at = 0; at < width; at += 4 * LANES)
            for (int i = 0; i < 4 && at + i * LANES < width; i++) {
                __m512 one = wide(upto(width - at - i * LANES), x + at + i * LANES);
                sums[i] = _mm512_fmadd_ps(one, one, sums[i]);
            }
        __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
        __m512 by = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(sum) / (float)width + epsilon));
        for (int64_t at = 0; at < width; at += LANES) {
            __mmask16 some = upto(width - at);
            __m512 scaled = _mm512_mul_ps(wide(some, x + at), by), times = wide(some, weight + at);
            if (form == 0) scaled = rounded(scaled);
            if (form == 2) times = _mm512_add_ps(times, _mm512_set1_ps(1.0f));
            narrow(to + at, some, _mm512_mul_ps(scaled, times));
        }
    }
}
