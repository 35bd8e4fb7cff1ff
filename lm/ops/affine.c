/* Linear maps y = x W' + bias of sequences, forward and backward, with what comes before or after them.
 *
 * Weights are packed into panels of COLUMNS columns, once for y and once for the gradient of x; rows of x are taken in
 * blocks that stay in the cache. The gradient of W sums over rows: for it, pairs of rows are interleaved, as a unit of
 * depth is a pair of bfloat16. Nothing depends on the number of threads.
 */
#include "product.h"

enum {
    BLOCK = 8 * ROWS, /* rows, at least, that are multiplied by one panel after the other */
    DEPTH = 128,      /* units of depth that are added up in registers */
    PARTS = 8,        /* of the rows, at most: each adds up gradients of weights, the parts' sums are added at the end */
    PART_ROWS = 384,  /* at least */
    IN_CACHE = 1 << 17,                       /* weights whose gradient stays in the cache of a core: */
    SHORT_ROUND = 2 * BLOCK, LONG_ROUND = 512, /* rows after which it is increased, so that they stay there too */
    CHUNK = 256, /* units that are packed at a time */
    LINE = 16,   /* units in a line of the cache */
};

typedef struct {
    int32_t type, threads;
    /* x (N, K), weight (M, K), y (N, M). N >= ROWS; K and M are multiples of COLUMNS, but of a single map without bias
     * and residual M can be any number, an even one for bfloat16. */
    int64_t N, M, K;
    const char *x;
    const float *weight, *bias; /* bias (M) may be null */
    unit *back;                 /* the weights as packed for backward, null if there will be none */
    char *y;                    /* of x's type; or null, and then */
    const float *residual;
    float *sum; /* residual + y, (N, M) */
    /* backward */
    const char *grad;      /* (N, M), of x's type; or null, and then */
    const float *grad_sum; /* the gradient of `sum` */
    char *grad_x;
    float *grad_weight, *grad_bias; /* grad_bias may be null */
    /* within this file */
    unit *panels;           /* the packed weights */
    char *squared;          /* (N, M), the squared ReLU of y; or null */
    const char *squared_of; /* (N, K), of what x is the squared ReLU, and grad_x the gradient; or null */
} affine;

/* ---- layout ---- */

INLINE int64_t per_unit(int type) { return type == FLOAT32 ? 1 : 2; }

/* n rows in pieces of at least `size`, if there are as many, each of which starts at an even row. */
INLINE int64_t pieces(int64_t n, int64_t size) { return n < 2 * size ? 1 : n / size; }
INLINE int64_t piece_start(int64_t n, int64_t count, int64_t i) { return i == count ? n : i * (n / 2) / count * 2; }

/* Two elements at a distance, as a unit; or one, for floats. */
INLINE unit pair(int type, const float *x, int64_t distance) {
    if (type == FLOAT32) return as_bits(x[0]);
    return to_bfloat16(x[0]) | (unit)to_bfloat16(x[distance]) << 16;
}

INLINE int64_t panels_of(int64_t columns) { return (columns + COLUMNS - 1) / COLUMNS; }

/* Packs one panel of columns of y: `panels` is (M / COLUMNS rounded up, K units, COLUMNS). */
static void pack(int type, const affine *c, int64_t panel) {
    const int64_t depth = c->K / per_unit(type), columns = clamp(c->M - panel * COLUMNS, 0, COLUMNS);
    unit *out = c->panels + panel * depth * COLUMNS;
    if (columns < COLUMNS) memset(out, 0, depth * COLUMNS * sizeof(unit));
    for (int64_t column = 0; column < columns; column++) {
        const float *row = c->weight + (panel * COLUMNS + column) * c->K;
        for (int64_t first = 0; first < depth; first += CHUNK) {
            unit chunk[CHUNK];
            const int size = depth - first < CHUNK ? depth - first : CHUNK;
            LOOP(size) chunk[j] = pair(type, row + (first + j) * per_unit(type), 1);
            for (int k = 0; k < size; k++) out[(first + k) * COLUMNS + column] = chunk[k];
        }
    }
}

/* Packs one panel of columns of x: `back` is (K / COLUMNS, M units, COLUMNS). */
static void pack_back(int type, const affine *c, int64_t panel) {
    const int64_t depth = c->M / per_unit(type);
    unit *out = c->back + panel * depth * COLUMNS;
    for (int64_t k = 0; k < depth; k++) {
        const float *row = c->weight + k * per_unit(type) * c->K + panel * COLUMNS;
        LOOP(COLUMNS) out[k * COLUMNS + j] = pair(type, row + j, c->K);
    }
}

/* A matrix (N, n) whose rows are units `step` apart, in tiles of columns that begin `tile` units apart. */
typedef struct {
    unit *data;
    int64_t step, tile;
} interleaved;

INLINE interleaved take(char **memory, int type, int64_t N, int64_t n, int64_t width) {
    const int64_t units = (N + per_unit(type) - 1) / per_unit(type);
    const interleaved taken = {(unit *)*memory, width, (units * width + LINE - 1) / LINE * LINE + LINE};
    *memory += (n + width - 1) / width * taken.tile * sizeof(unit);
    return taken;
}

/* `size` adjacent columns of a pair of rows; high is null after the last row. */
INLINE void interleave_part(int type, const void *low, const uint16_t *high, int size, unit *to) {
    const uint16_t *half = low;
    if (type == FLOAT32) memcpy(to, low, size * sizeof(unit));
    else if (high) { LOOP(size) to[j] = half[j] | (unit)high[j] << 16; }
    else { LOOP(size) to[j] = half[j]; }
}

/* Rows from `row` on, of which there are m, of n elements each. */
INLINE void interleave(int type, const char *rows, int64_t row, int64_t m, int64_t n, int width, interleaved out) {
    const int64_t several = width * (width < COLUMNS ? 4 : 1); /* not more: their places share sets of the cache */
    for (int64_t strip = 0; strip < n; strip += several)
        for (int64_t u = 0; u * per_unit(type) < m; u++)
            for (int64_t i = strip; i < n && i < strip + several; i += width) {
                const char *low = rows + (u * per_unit(type) * n + i) * size_of(type);
                const uint16_t *high = 2 * u + 1 < m ? (const uint16_t *)low + n : 0;
                unit *to = out.data + i / width * out.tile + (row / per_unit(type) + u) * width;
                if (n - i >= width) interleave_part(type, low, high, width, to);
                else interleave_part(type, low, high, n - i, to);
            }
}

INLINE void write(int type, char *to, vector x) {
#if defined(__AVX512BF16__)
    if (type == BFLOAT16) {
        const __m256bh half = _mm512_cvtneps_pbh((__m512)x);
        memcpy(to, &half, sizeof half);
        return;
    }
#endif
    save_vector(to, x);
}

INLINE vector fetch(int type, const char *from) {
    if (type == FLOAT32) return load_vector(from);
    vector x;
    for (int j = 0; j < LANES; j++) x[j] = from_bfloat16(((const uint16_t *)from)[j]);
    return x;
}

typedef int32_t mask __attribute__((vector_size(4 * LANES)));

INLINE vector positive(vector x) { return (vector)((mask)x & ~(x < 0)); } /* a NaN stays one */

/* ---- forward ---- */

INLINE void forward_tile(int type, const affine *c, int64_t row, int64_t column, vector sum[ROWS][2]) {
    for (int r = 0; r < ROWS; r++)
        for (int half = 0; half < 2; half++) {
            const int64_t i = column + half * LANES, at = (row + r) * c->M + i;
            vector y = sum[r][half];
            if (i + LANES > c->M) { /* the last panel may have columns that y has not */
                char edge[sizeof(vector)];
                write(type, edge, y);
                if (i < c->M) memcpy(c->y + at * size_of(type), edge, (c->M - i) * size_of(type));
                continue;
            }
            if (c->bias) y += *(const vector *)(c->bias + i);
            if (c->sum) {
                y += *(const vector *)(c->residual + at);
                save_vector(c->sum + at, y);
                continue;
            }
            write(type, c->y + at * size_of(type), y);
            if (!c->squared) continue;
            y = positive(fetch(type, c->y + at * size_of(type)));
            write(type, c->squared + at * size_of(type), y * y);
        }
}

INLINE void forward_rows(int type, const affine *c, int64_t start, int64_t end) {
    const int64_t depth = c->K / per_unit(type);
    for (int64_t j = 0; j < c->M; j += COLUMNS)
        for (int64_t i = start; i < end; i += ROWS) {
            vector sum[ROWS][2];
            const int64_t row = i + ROWS > end ? end - ROWS : i;
            multiply_tile(type, depth, (const unit *)c->x + row * depth, depth, 1, c->panels + j * depth, COLUMNS, sum);
            forward_tile(type, c, row, j, sum);
        }
}

/* Packs all panels of a map that are for one of several threads. */
INLINE void pack_share(int type, const affine *c, int share, int shares) {
    const int64_t ahead = panels_of(c->M), all = ahead + (c->back ? panels_of(c->K) : 0);
    for (int64_t panel = share * all / shares; panel < (share + 1) * all / shares; panel++)
        if (panel < ahead) pack(type, c, panel);
        else pack_back(type, c, panel - ahead);
}

/* A matrix that has only the rows from `start` on, addressed as if it had all. */
INLINE char *beginning_at(int type, char *rows, int64_t start, int64_t columns) {
    return rows - start * columns * size_of(type);
}

/* The blocks of rows that are for one of the threads. With two maps, `squared` has room for what is between them. */
INLINE void forward_share(int type, const affine *maps, int count, int share, char *squared) {
    const int64_t N = maps->N, blocks = pieces(N, BLOCK), threads = maps->threads;
    affine first = maps[0], last = maps[count - 1];
    for (int64_t block = share * blocks / threads; block < (share + 1) * blocks / threads; block++) {
        const int64_t start = piece_start(N, blocks, block), end = piece_start(N, blocks, block + 1);
        if (count > 1) last.x = first.squared = beginning_at(type, squared, start, first.M);
        forward_rows(type, &first, start, end);
        if (count > 1) forward_rows(type, &last, start, end);
    }
}

/* One map, or two with a squared ReLU between them, which stays in the cache. */
int affine_forward(affine *maps, int count) {
    const int type = maps->type, threads = maps->threads;
    const int64_t size = size_of(type), line = LINE * sizeof(unit), wide = count > 1 ? 2 * BLOCK * maps->M * size : 0;
    int64_t bytes = line + threads * wide;
    for (int i = 0; i < count; i++) bytes += panels_of(maps[i].M) * COLUMNS * maps[i].K * size;
    char *memory = malloc(bytes), *end = memory + -(uintptr_t)memory % line;
    if (!memory) return 1;
    for (int i = 0; i < count; i++) maps[i].panels = (unit *)end, end += panels_of(maps[i].M) * COLUMNS * maps[i].K * size;
#pragma omp parallel num_threads(threads)
    { /* inside, the type is a variable: what computes gets it as a constant */
#pragma omp for schedule(static)
        for (int t = 0; t < threads; t++)
            for (int i = 0; i < count; i++)
                if (type == FLOAT32) pack_share(FLOAT32, maps + i, t, threads);
                else pack_share(BFLOAT16, maps + i, t, threads);
#pragma omp for schedule(static)
        for (int t = 0; t < threads; t++)
            if (type == FLOAT32) forward_share(FLOAT32, maps, count, t, end + t * wide);
            else forward_share(BFLOAT16, maps, count, t, end + t * wide);
    }
    free(memory);
    return 0;
}

/* ---- backward ---- */

INLINE void backward_tile(int type, const affine *c, int64_t row, int64_t column, vector sum[ROWS][2]) {
    for (int r = 0; r < ROWS; r++)
        for (int half = 0; half < 2; half++) {
            const int64_t at = ((row + r) * c->K + column + half * LANES) * size_of(type);
            vector x = sum[r][half];
            if (c->squared_of) x *= 2 * positive(fetch(type, c->squared_of + at));
            write(type, c->grad_x + at, x);
        }
}

/* Adds m rows of n elements. */
INLINE void add_rows(int type, const char *rows, int64_t m, int64_t n, float *sum) {
    for (int64_t i = 0; i < m * n; i += LANES) *(vector *)(sum + i % n) += fetch(type, rows + i * size_of(type));
}

/* Whether the gradient of y needs no interleaving: rows of floats are units, and a tile may begin at any column. */
INLINE int in_place(int type, const affine *c) { return type == FLOAT32 && c->M >= ROWS; }

/* What a part of the rows contributes to the gradients of a map's weights and bias, and needs for it. */
typedef struct {
    interleaved grad, x; /* the rows of a round */
    float *weight, *bias;
} share;

/* A part: the shares of one or two maps, and for a block of rows what stays in the cache. */
typedef struct {
    share maps[2];
    char *rounded;               /* grad_sum in x's type */
    char *squared, *grad_hidden; /* of two maps: what is between them; grad_hidden of a round if it is used in place */
} part;

/* The gradient of x in the rows from `start` to `end`; interleaves them, `row` rows after the first of their round. */
INLINE void backward_rows(int type, const affine *c, int64_t start, int64_t end, int64_t row, const share *p, char *rounded) {
    const int64_t depth = c->M / per_unit(type), size = size_of(type), m = end - start;
    const char *rows = c->grad_sum ? (const char *)(c->grad_sum + start * c->M) : c->grad + start * c->M * size;
    if (c->grad_bias) add_rows(c->grad_sum ? FLOAT32 : type, rows, m, c->M, p->bias);
    if (c->grad_sum && type != FLOAT32) {
        for (int64_t i = 0; i < m * c->M; i += LANES) write(type, rounded + i * size, fetch(FLOAT32, rows + 4 * i));
        rows = rounded;
    }
    if (!in_place(type, c)) interleave(type, rows, row, m, c->M, ROWS, p->grad);
    interleave(type, c->x + start * c->K * size, row, m, c->K, COLUMNS, p->x);
    for (int64_t j = 0; j < c->K; j += COLUMNS)
        for (int64_t i = 0; i < m; i += ROWS) {
            vector sum[ROWS][2];
            const int64_t first = i + ROWS > m ? m - ROWS : i;
            multiply_tile(type, depth, (const unit *)rows + first * depth, depth, 1, c->back + j * depth, COLUMNS, sum);
            backward_tile(type, c, start + first, j, sum);
        }
}

/* The first of two maps, whose gradient of y is only what the second left in the rows from `start` on. */
INLINE affine with_hidden(int type, const affine *maps, int64_t start, const part *p) {
    affine first = maps[0];
    first.grad = beginning_at(type, p->grad_hidden, start, first.M);
    return first;
}

/* The same for all maps, in the rows from `start` to `end` of the round that begins at `round`. */
INLINE void backward_block(
    int type, const affine *maps, int count, int64_t start, int64_t end, int64_t round, const part *p
) {
    const int64_t row = start - round;
    affine first = maps[0], last = maps[count - 1];
    if (count > 1) {
        const int64_t size = size_of(type), K = last.K;
        for (int64_t i = 0; i < (end - start) * K; i += LANES) {
            const vector y = positive(fetch(type, first.y + (start * K + i) * size));
            write(type, p->squared + i * size, y * y);
        }
        last.squared_of = first.y;
        last.x = beginning_at(type, p->squared, start, K);
        first = with_hidden(type, maps, in_place(type, maps) ? round : start, p);
        last.grad_x = (char *)first.grad;
        backward_rows(type, &last, start, end, row, p->maps + 1, p->rounded);
    }
    backward_rows(type, &first, start, end, row, p->maps, p->rounded);
}

/* Adds what a round, the m rows from `round` on, contributes to the gradient of the weights. The first round sets it. */
INLINE void backward_weights(int type, const affine *c, int64_t round, int64_t m, int is_first, const share *p) {
    const int64_t units = (m + per_unit(type) - 1) / per_unit(type);
    const char *rows = c->grad_sum ? (const char *)c->grad_sum : c->grad;
    const int is_placed = in_place(type, c);
    const interleaved y = is_placed ? (interleaved){(unit *)rows + round * c->M, c->M, ROWS} : p->grad;
    for (int64_t column = 0; column < c->K; column += COLUMNS)
        for (int64_t start = 0; start < units; start += DEPTH)
            for (int64_t row = 0; row < c->M; row += ROWS) {
                vector sum[ROWS][2];
                const int skip = is_placed && row + ROWS > c->M ? row + ROWS - c->M : 0; /* rows that are done */
                const unit *grad = y.data + row / ROWS * y.tile + start * y.step - skip;
                const unit *x = p->x.data + column / COLUMNS * p->x.tile + start * COLUMNS;
                multiply_tile(type, units - start < DEPTH ? units - start : DEPTH, grad, 1, y.step, x, COLUMNS, sum);
                for (int r = skip; r < ROWS && row - skip + r < c->M; r++) {
                    vector *to = (vector *)(p->weight + (row - skip + r) * c->K + column);
                    to[0] = is_first && !start ? sum[r][0] : to[0] + sum[r][0];
                    to[1] = is_first && !start ? sum[r][1] : to[1] + sum[r][1];
                }
            }
}

/* All that one of the parts of the rows contributes. */
INLINE void backward_part(int type, const affine *maps, int count, int index, int parts, int64_t round, const part *p) {
    const int64_t start = piece_start(maps->N, parts, index), n = piece_start(maps->N, parts, index + 1) - start;
    const int64_t rounds = pieces(n, round);
    for (int i = 0; i < count; i++)
        if (maps[i].grad_bias) memset(p->maps[i].bias, 0, maps[i].M * sizeof(float));
    for (int64_t r = 0; r < rounds; r++) {
        const int64_t from = start + piece_start(n, rounds, r), m = start + piece_start(n, rounds, r + 1) - from;
        const int64_t blocks = pieces(m, BLOCK);
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = from + piece_start(m, blocks, block), end = from + piece_start(m, blocks, block + 1);
            backward_block(type, maps, count, first, end, from, p);
        }
        for (int i = 0; i < count; i++) {
            const affine map = i + 1 < count ? with_hidden(type, maps, from, p) : maps[i];
            backward_weights(type, &map, from, m, !r, p->maps + i);
        }
    }
}

/* The memory of a part whose rounds have at most `rows` rows: its size, or with `memory` its places. */
INLINE int64_t divide(int type, const affine *maps, int count, int64_t rows, char *memory, part *p) {
    char *end = memory;
    for (int i = 0; i < count; i++) {
        const affine *c = maps + i;
        p->maps[i].grad = take(&end, type, rows, c->M, ROWS);
        p->maps[i].x = take(&end, type, rows, c->K, COLUMNS);
        p->maps[i].weight = (float *)end, end += c->M * c->K * sizeof(float);
        p->maps[i].bias = (float *)end, end += c->M * sizeof(float);
    }
    const int64_t block = 2 * BLOCK * size_of(type);
    p->rounded = end, end += block * maps[count - 1].M;
    p->squared = end, end += count > 1 ? block * maps[0].M : 0;
    p->grad_hidden = end, end += count == 1 ? 0 : maps->M * (in_place(type, maps) ? rows * size_of(type) : block);
    return end - memory;
}

/* The sum of the parts' gradients of a map's weights, or of its bias, from `from` to `to`. */
INLINE void add_parts(const part *all, int64_t parts, int map, int bias, int64_t from, int64_t to, float *sum) {
    for (int64_t i = 0; i < parts; i++) {
        const float *one = bias ? all[i].maps[map].bias : all[i].maps[map].weight;
        if (i) for (int64_t j = from; j < to; j++) sum[j] += one[j];
        else memcpy(sum + from, one + from, (to - from) * sizeof(float));
    }
}

/* Backward of what `affine_forward` computes. Both return 1 if there is no memory. */
int affine_backward(affine *maps, int count) {
    const int type = maps->type;
    const int64_t N = maps->N, parts = clamp(N / PART_ROWS, 1, PARTS), line = LINE * sizeof(unit);
    const int64_t round = maps->M * maps->K <= IN_CACHE ? SHORT_ROUND : LONG_ROUND;
    part all[PARTS];
    const int64_t bytes = divide(type, maps, count, 2 * round, 0, all);
    char *memory = malloc(parts * bytes + line);
    if (!memory) return 1;
    for (int i = 0; i < parts; i++) /* on whole lines of the cache: vectors that cross them load slowly */
        divide(type, maps, count, 2 * round, memory + -(uintptr_t)memory % line + i * bytes, all + i);
#pragma omp parallel num_threads(maps->threads)
    {
#pragma omp for schedule(static)
        for (int i = 0; i < parts; i++)
            if (type == FLOAT32) backward_part(FLOAT32, maps, count, i, parts, round, all + i);
            else backward_part(BFLOAT16, maps, count, i, parts, round, all + i);
        for (int i = 0; i < count; i++) {
            const affine *c = maps + i;
#pragma omp for schedule(static) nowait
            for (int64_t row = 0; row < c->M; row++)
                add_parts(all, parts, i, 0, row * c->K, (row + 1) * c->K, c->grad_weight);
        }
    }
    for (int i = 0; i < count; i++)
        if (maps[i].grad_bias) add_parts(all, parts, i, 1, 0, maps[i].M, maps[i].grad_bias);
    free(memory);
    return 0;
}

/* What M and K must be multiples of; 0 where the processor has something faster for this type, a unit for matrices. */
int affine_columns(int type) {
#if !defined(__AVX__) || defined(__AMX_BF16__)
    return 0;
#elif defined(__AVX512BF16__)
    return type == FLOAT32 || type == BFLOAT16 ? COLUMNS : 0;
#else
    return type == FLOAT32 ? COLUMNS : 0;
#endif
}
