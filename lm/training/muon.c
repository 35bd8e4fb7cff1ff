/* The Newton-Schulz iteration on Gram matrices: see gram_polynomial in muon.py.
 *
 * Every matrix here is a polynomial of one symmetric matrix. Products of such matrices are symmetric, so that only the
 * upper half is computed and the rest mirrored. One thread computes all of a matrix, so results do not depend on their
 * number.
 */
#include "kernel.h"

/* A tile of ROWS x COLUMNS sums fills three quarters of the registers. */
enum { ROWS = 3 * REGISTERS / 8, COLUMNS = 2 * LANES, SLACK = 64 };

/* Matrices in the workspace: rows are `stride` apart, padded to whole tiles, not a power of two (sets of the cache). */
typedef struct {
    int64_t n, stride;
    float *gram, *square, *p, *product, *panel;
} workspace;

/* out = a b, for a and b whose product is symmetric. out is neither of them. */
static void multiply(const workspace *w, const float *restrict a, const float *restrict b, float *restrict out) {
    float *restrict panel = w->panel;
    for (int64_t j = 0; j < w->n; j += COLUMNS) {
        for (int64_t k = 0; k < w->n; k++) memcpy(panel + k * COLUMNS, b + k * w->stride + j, COLUMNS * sizeof(float));
        for (int64_t i = 0; i < w->n && i < j + COLUMNS; i += ROWS) { /* tiles that reach the upper half */
            vector sum[ROWS][2] = {0};
            for (int64_t k = 0; k < w->n; k++) {
                const vector *y = (const vector *)(panel + k * COLUMNS);
                const vector left = y[0], right = y[1];
                const float *x = a + k * w->stride + i; /* column k of a is its row k */
                _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++) {
                    sum[r][0] += x[r] * left;
                    sum[r][1] += x[r] * right;
                }
            }
            const int rows = w->n - i < ROWS ? w->n - i : ROWS;
            for (int r = 0; r < rows; r++) memcpy(out + (i + r) * w->stride + j, sum[r], sizeof sum[r]);
            for (int64_t q = 0; q < COLUMNS && j + q < w->n; q++)
                for (int r = 0; r < rows; r++) out[(j + q) * w->stride + i + r] = ((const float *)sum[r])[q];
        }
    }
}

static void swap(float **a, float **b) { float *c = *a; *a = *b; *b = c; }

/* The product of p = a + b g + c g^2 over all steps; each step takes g to p g p. */
static void iterate(workspace *w, int steps, const float *abc) {
    for (int step = 0; step < steps; step++) {
        multiply(w, w->gram, w->gram, w->square);
        for (int64_t i = 0; i < w->n; i++) {
            float *row = w->square + i * w->stride;
            const float *gram = w->gram + i * w->stride;
            LOOP(w->n) row[j] = abc[2] * row[j] + abc[1] * gram[j];
            row[i] += abc[0];
        }
        swap(&w->p, &w->square); /* `square` is free now */
        if (step) {
            multiply(w, w->p, w->product, w->square);
            swap(&w->product, &w->square);
        } else {
            memcpy(w->product, w->p, w->n * w->stride * sizeof(float));
        }
        if (step < steps - 1) {
            multiply(w, w->p, w->gram, w->square);
            multiply(w, w->square, w->p, w->gram);
        }
    }
}

/* gram (count, n, n) -> result (count, n, n). Returns 1 if there is no memory. */
int gram_polynomial(int count, int n, int steps, const float *abc, const float *gram, float *result, int threads) {
    const int64_t stride = (n + COLUMNS - 1) / COLUMNS * COLUMNS + LANES, size = n * stride + SLACK;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *memory = calloc(4 * size + n * COLUMNS, sizeof(float));
        failed = !memory;
#pragma omp for schedule(static)
        for (int m = 0; m < count; m++) {
            if (!memory) continue;
            workspace w = {n, stride, memory, memory + size, memory + 2 * size, memory + 3 * size, memory + 4 * size};
            for (int i = 0; i < n; i++) memcpy(w.gram + i * stride, gram + ((int64_t)m * n + i) * n, n * sizeof(float));
            iterate(&w, steps, abc);
            for (int i = 0; i < n; i++) memcpy(result + ((int64_t)m * n + i) * n, w.product + i * stride, n * sizeof(float));
        }
        free(memory);
    }
    return failed;
}
