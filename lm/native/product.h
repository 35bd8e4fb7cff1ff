/* Products of matrices, in tiles of ROWS x COLUMNS sums that stay in registers.
 *
 * A unit of depth is what a lane multiplies at once: a float, or two adjacent bfloat16 where the processor has an
 * instruction that adds both products to a float.
 */
#include "kernel.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

/* Half of 32 registers, three quarters of 16: with more rows, more tiles reach over the edge of a matrix. */
enum { ROWS = REGISTERS / 8 + 4, COLUMNS = 2 * LANES };

typedef uint32_t unit;

INLINE vector multiply_add(int type, vector sum, unit a, vector b) {
#if defined(__AVX512BF16__)
    if (type == BFLOAT16) return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
#endif
    return sum + as_float(a) * b;
}

INLINE void add_products(
    int type, int64_t depth, const unit *a, int64_t row, int64_t step, const unit *b, int64_t b_step, vector sum[ROWS][2]
) {
    vector left[ROWS] = {0}, right[ROWS] = {0};
    for (int64_t k = 0; k < depth; k++, a += step, b += b_step) {
        const vector y = *(const vector *)b, z = *(const vector *)(b + LANES);
        _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++) {
            left[r] = multiply_add(type, left[r], a[r * row], y);
            right[r] = multiply_add(type, right[r], a[r * row], z);
        }
    }
    _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++) sum[r][0] = left[r], sum[r][1] = right[r];
}

/* Functions of their own, so that no constant of a caller takes a register either. */
static __attribute__((noinline)) void multiply_floats(
    int64_t depth, const unit *a, int64_t row, int64_t step, const unit *b, int64_t b_step, vector sum[ROWS][2]
) {
    add_products(FLOAT32, depth, a, row, step, b, b_step, sum);
}

static __attribute__((noinline)) void multiply_pairs(
    int64_t depth, const unit *a, int64_t row, int64_t step, const unit *b, int64_t b_step, vector sum[ROWS][2]
) {
    add_products(BFLOAT16, depth, a, row, step, b, b_step, sum);
}

/* sum[r] = the sum over k < depth of a[r row + k step] b[k b_step + 0 ... COLUMNS - 1]; steps are in units. */
INLINE void multiply_tile(
    int type, int64_t depth, const unit *a, int64_t row, int64_t step, const unit *b, int64_t b_step, vector sum[ROWS][2]
) {
    if (type == FLOAT32) multiply_floats(depth, a, row, step, b, b_step, sum);
    else multiply_pairs(depth, a, row, step, b, b_step, sum);
}
