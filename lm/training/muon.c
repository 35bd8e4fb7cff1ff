/* Muon's update of matrices: see `update_native` in muon.py.
 *
 * Every matrix of the Newton-Schulz iteration is a polynomial of one symmetric matrix. Products of such matrices are
 * symmetric, so that only the upper half is computed and the rest mirrored. One thread computes all of a matrix, so
 * results do not depend on their number.
 */
#include "product.h"

enum { SLACK = 64, MOST_STEPS = 5 };

typedef struct {
    float *p, *momentum;
    float *second; /* (rows), NorMuon's mean squares; null for Muon without it */
    const float *grad;
    int64_t rows, columns;
} matrix;

typedef struct {
    int32_t count, steps, threads;
    float polynomials[MOST_STEPS][3];
    float lr, decay, momentum, beta2; /* p is multiplied by `decay` */
} options;

/* A matrix in the workspace. Rows are padded to whole tiles, and their distance is no power of two (sets of the cache);
 * their number is a multiple of 4.
 */
typedef struct {
    float *data;
    int64_t stride;
} grid;

static int64_t stride_of(int64_t columns) { return (columns + COLUMNS - 1) / COLUMNS * COLUMNS + LANES; }

/* Floats of a matrix; the last tile reads beyond the last row. */
static int64_t size_of_grid(int64_t rows, int64_t columns) { return (rows + 3) / 4 * 4 * stride_of(columns) + SLACK; }

static grid take(float **memory, int64_t rows, int64_t columns) {
    const grid taken = {*memory, stride_of(columns)};
    *memory += size_of_grid(rows, columns);
    return taken;
}

typedef float quad __attribute__((vector_size(16), aligned(4)));

INLINE quad low(quad a, quad b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
INLINE quad high(quad a, quad b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }

/* Four rows and columns of `from`, transposed. */
INLINE void transpose(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    quad x[4];
    for (int i = 0; i < 4; i++) memcpy(x + i, from + i * from_stride, sizeof(quad));
    const quad a = low(x[0], x[2]), b = low(x[1], x[3]), c = high(x[0], x[2]), d = high(x[1], x[3]);
    const quad y[4] = {low(a, b), high(a, b), low(c, d), high(c, d)};
    for (int i = 0; i < 4; i++) memcpy(to + i * to_stride, y + i, sizeof(quad));
}

/* Copies the upper half of a symmetric matrix (n, n) to its lower half. */
static void mirror(int64_t n, grid x) {
    for (int64_t i = 0; i < n; i += 4) {
        const float *row = x.data + i * x.stride;
        for (int64_t j = i + 4; j < n; j += 4) transpose(row + j, x.stride, x.data + j * x.stride + i, x.stride);
        for (int r = 0; r < 4; r++)
            for (int q = r + 1; q < 4; q++) x.data[(i + q) * x.stride + i + r] = x.data[(i + r) * x.stride + i + q];
    }
}

/* out (n, m) = a' b for a (depth, n) and b (depth, m), which is neither. A symmetric result is mirrored from its upper
 * half. `panel` has depth x COLUMNS floats.
 */
static void multiply(
    int64_t n, int64_t m, int64_t depth, grid a, grid b, grid out, int symmetric, float *restrict panel
) {
    for (int64_t j = 0; j < m; j += COLUMNS) {
        for (int64_t k = 0; k < depth; k++) memcpy(panel + k * COLUMNS, b.data + k * b.stride + j, COLUMNS * sizeof(float));
        const int64_t end = symmetric && j + COLUMNS < n ? j + COLUMNS : n; /* of the tiles that reach the upper half */
        for (int64_t i = 0; i < end; i += ROWS) {
            vector sum[ROWS][2];
            multiply_floats(depth, (const unit *)a.data + i, 1, a.stride, (const unit *)panel, COLUMNS, sum);
            const int rows = n - i < ROWS ? n - i : ROWS;
            for (int r = 0; r < rows; r++) memcpy(out.data + (i + r) * out.stride + j, sum[r], sizeof sum[r]);
        }
    }
    if (symmetric) mirror(n, out);
}

/* g (n, n) -> the product of p = a + b g + c g^2 over all steps, each of which takes g to p g p; in one of the four. */
static grid polynomial(int64_t n, const options *o, grid g, grid p, grid product, grid spare, float *panel) {
    for (int64_t i = 0; i < n; i++) {
        memset(product.data + i * product.stride, 0, n * sizeof(float));
        product.data[i * product.stride + i] = 1;
    }
    for (int step = 0; step < o->steps; step++) {
        const float *abc = o->polynomials[step];
        multiply(n, n, n, g, g, p, 1, panel);
        for (int64_t i = 0; i < n; i++) {
            float *row = p.data + i * p.stride;
            const float *old = g.data + i * g.stride;
            LOOP(n) row[j] = abc[2] * row[j] + abc[1] * old[j];
            row[i] += abc[0];
        }
        if (step) multiply(n, n, n, p, product, spare, 1, panel);
        else for (int64_t i = 0; i < n; i++) memcpy(spare.data + i * spare.stride, p.data + i * p.stride, n * sizeof(float));
        const grid old = product;
        product = spare, spare = old;
        if (step == o->steps - 1) break;
        multiply(n, n, n, p, g, spare, 1, panel);
        multiply(n, n, n, spare, p, g, 1, panel);
    }
    return product;
}

/* The momentum moves towards the gradient, and what is to be orthogonalised is between the two (Nesterov). It is written
 * twice, u (rows, columns) and transposed, v (columns, rows).
 */
static void move(const matrix *m, float momentum, grid u, grid v) {
    for (int64_t r = 0; r < m->rows; r++) {
        float *old = m->momentum + r * m->columns, *row = u.data + r * u.stride;
        const float *grad = m->grad + r * m->columns;
        LOOP(m->columns) {
            old[j] += (1 - momentum) * (grad[j] - old[j]);
            row[j] = old[j] - (1 - momentum) * (old[j] - grad[j]);
        }
    }
    for (int64_t r = 0; r < m->rows; r += 4) {
        const float *row = u.data + r * u.stride;
        for (int64_t c = 0; c < m->columns; c += 4) transpose(row + c, u.stride, v.data + c * v.stride + r, v.stride);
    }
}

/* NorMuon (arXiv 2510.05491): the factors of the rows of an update, which keep its norm; see `row_factors` in optim.py. */
static void factors_of(const matrix *m, float beta2, grid update, float *factors) {
    double before = 0, after = 0;
    for (int64_t r = 0; r < m->rows; r++) {
        const float *row = update.data + r * update.stride;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < m->columns; j++) sum += row[j] * row[j];
        const float square = sum / m->columns;
        m->second[r] += (1 - beta2) * (square - m->second[r]);
        factors[r] = 1 / (sqrtf(m->second[r]) + 1e-8f);
        before += square;
        after += square * factors[r] * factors[r];
    }
    const float keep = sqrt(before / (after < 1e-30 ? 1e-30 : after));
    for (int64_t r = 0; r < m->rows; r++) factors[r] *= keep;
}

static void update(const matrix *m, const options *o, float *memory) {
    const int tall = m->rows > m->columns;
    const int64_t n = tall ? m->columns : m->rows, depth = tall ? m->rows : m->columns;
    const grid u = take(&memory, m->rows, m->columns), v = take(&memory, m->columns, m->rows);
    const grid out = take(&memory, m->rows, m->columns);
    grid squares[4];
    for (int i = 0; i < 4; i++) squares[i] = take(&memory, n, n);
    float *factors = memory, *panel = memory + m->rows;

    move(m, o->momentum, u, v);
    const grid g = squares[0], x = tall ? u : v; /* x (depth, n) */
    multiply(n, n, depth, x, x, g, 1, panel);
    double trace = 0;
    for (int64_t i = 0; i < n; i++) trace += g.data[i * g.stride + i];
    const float norm = sqrt(trace) + 1e-7;
    for (int64_t i = 0; i < n; i++) { LOOP(n) g.data[i * g.stride + j] /= norm * norm; }
    const grid f = polynomial(n, o, g, squares[1], squares[2], squares[3], panel);
    for (int64_t i = 0; i < n; i++) { LOOP(n) f.data[i * f.stride + j] /= norm; }
    if (tall) multiply(m->rows, n, n, v, f, out, 0, panel);
    else multiply(n, m->columns, n, f, u, out, 0, panel);

    for (int64_t r = 0; r < m->rows; r++) factors[r] = 1;
    if (m->second) factors_of(m, o->beta2, out, factors);
    const float lr = o->lr * (tall ? sqrtf((float)m->rows / m->columns) : 1);
    for (int64_t r = 0; r < m->rows; r++) {
        float *p = m->p + r * m->columns;
        const float *row = out.data + r * out.stride, factor = lr * factors[r];
        LOOP(m->columns) p[j] = p[j] * o->decay - factor * row[j];
    }
}

/* Floats that `update` takes. */
static int64_t room(const matrix *m) {
    const int64_t n = m->rows < m->columns ? m->rows : m->columns, depth = m->rows + m->columns - n;
    const int64_t whole = 2 * size_of_grid(m->rows, m->columns) + size_of_grid(m->columns, m->rows);
    return whole + 4 * size_of_grid(n, n) + m->rows + depth * COLUMNS;
}

/* Updates all matrices. Returns 1 if there is no memory: some of them may then be as before. */
int muon_update(const matrix *matrices, const options *o) {
    int64_t size = 0;
    int failed = 0;
    for (int i = 0; i < o->count; i++) size = room(matrices + i) > size ? room(matrices + i) : size;
#pragma omp parallel num_threads(o->threads) reduction(| : failed)
    {
        float *memory = calloc(size, sizeof(float));
        failed = !memory;
#pragma omp for schedule(dynamic)
        for (int i = 0; i < o->count; i++)
            if (memory) update(matrices + i, o, memory);
        free(memory);
    }
    return failed;
}
