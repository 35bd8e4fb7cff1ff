/* The processor's limit: multiply-adds on values that stay in registers, on all threads. */
#include "kernel.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

/* Independent sums of a thread: enough to hide the latency of an instruction, few enough for the registers. */
enum { SUMS = 3 * REGISTERS / 4 };

/* The compiler must do all of it: sums may not be reordered, and their total is used. */
#define ROUNDS(statement) \
    for (int64_t i = 0; i < rounds; i++) { \
        _Pragma("GCC unroll 24") for (int s = 0; s < SUMS; s++) statement; \
    }

INLINE float float32_sums(int64_t rounds) {
    vector sums[SUMS], factor, term;
    for (int j = 0; j < LANES; j++) { factor[j] = 0.999f; term[j] = 1e-3f; }
    for (int s = 0; s < SUMS; s++) sums[s] = factor * (float)s;
    ROUNDS(sums[s] = sums[s] * factor + term)
    float total = 0;
    for (int s = 0; s < SUMS; s++) for (int j = 0; j < LANES; j++) total += sums[s][j];
    return total;
}

/* Products of pairs of bfloat16, added to float32. */
INLINE float bfloat16_sums(int64_t rounds) {
    float total = 0;
#ifdef __AVX512BF16__
    __m512 sums[SUMS];
    __m512bh factor = (__m512bh)_mm512_set1_epi16(0x3c00); /* 2^-7 */
    for (int s = 0; s < SUMS; s++) sums[s] = _mm512_set1_ps(s);
    ROUNDS(sums[s] = _mm512_dpbf16_ps(sums[s], factor, factor))
    for (int s = 0; s < SUMS; s++) total += _mm512_reduce_add_ps(sums[s]);
#endif
    return total;
}

/* Multiply-adds of FLOAT32 or BFLOAT16 on so many threads. Returns the number of floating-point operations, two for each
 * multiply-add; 0 if there is no such instruction or not so many threads. `sink` gets a sum of the results. */
double multiply_adds(int type, int64_t rounds, int threads, float *sink) {
    int operations = 2 * LANES, team = 0;
    float total = 0;
    if (type == BFLOAT16) {
#ifdef __AVX512BF16__
        operations *= 2;
#else
        return 0;
#endif
    }
#pragma omp parallel num_threads(threads) reduction(+ : team, total)
    {
        team += 1;
        total += type == BFLOAT16 ? bfloat16_sums(rounds) : float32_sums(rounds);
    }
    *sink = total;
    return team == threads ? (double)operations * SUMS * rounds * threads : 0;
}
