/* Decoding steps of a whole minGRU / minLSTM model: ids and states in, logits and states out (see packed.py).
 *
 * Matrices (N outputs, K inputs) lie in memory as the kernel reads them: in blocks of BLOCK outputs, each a sequence of
 * K rows of BLOCK weights, so that the inner loop is "broadcast one input, multiply, add", reads memory straight through,
 * and needs no horizontal sum. Every output is the sum over k = 0 .. K - 1 in that order, whatever the batch: a row's
 * numbers do not depend on the rows beside it, to the bit.
 */
#include "kernel.h"

#ifdef __clang__ /* which unrolls by a number only after it has put arrays into memory */
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define EACH(i, n) UNROLL for (int i = 0; i < (n); i++)

enum {
    TILE = LANES == 4 ? REGISTERS / 4 : 3 * REGISTERS / 8, /* rows whose sums stay in registers, two vectors each */
    BLOCK = 2 * LANES, /* outputs of a block */
    WIDE = 4,          /* blocks that one row goes through together: enough sums to hide the latency of adding */
    ROWS = 32,         /* rows that go through the model together: each block of weights is read once for all of them */
    FEW = 16,          /* or so many where threads share the work */
    MOST = 64,         /* threads beside the calling one */
};
enum { INT8 = BFLOAT16 + 1 }; /* a matrix is FLOAT32, BFLOAT16 or INT8 */
enum { MINGRU, MINLSTM };
enum { RELU2, GELU, SWIGLU };
enum { BAD_ID = 1, NO_MEMORY };

typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));

/* Packed weights. BFLOAT16 has in each 32-bit word a weight of the first half of the block (low) and one of the second,
 * INT8 the same for an even input (low) and for the next one; there is a zero for the one that an odd K lacks. Each of its
 * bytes is taken as the highest of a word: a weight times 2^24. */
typedef struct {
    const char *weight;
    const float *scale, *bias; /* per output, or null */
    int64_t N, K;
} matrix;

typedef struct {
    int64_t kind, hidden, taps, mlp, mlp_hidden; /* taps of the convolution, 0 for none */
    const float *norm_mixer, *norm_mlp, *tap, *tap_bias;
    matrix projection, down, mlp_up, mlp_down; /* down.weight is null where there is none */
} layer;

typedef struct {
    int64_t type, vocabulary, width, layers, widest; /* widest: the most outputs that a matrix has */
    float eps;
    const float *embedding, *norm;
    matrix head;
    const layer *layer;
} model;

/* ---- elementwise ---- */

/* i / (f + i) of the gates' logits: (1 + exp(-f)) / (2 + exp(-f) + exp(-i)), scaled by the largest exponential. */
INLINE float share(float f, float i) {
    f = maximum(f, -1e30f), i = maximum(i, -1e30f);
    float low = minimum(minimum(f, i), 0.0f);
    float one = exp_negative(low), ef = exp_negative(low - f), ei = exp_negative(low - i);
    return (one + ef) / (one + ef + (one + ei));
}

INLINE float g(float c) {
    float e = exp_negative(minimum(c, 0.0f));
    return c >= 0 ? c + 0.5f : e / (1.0f + e);
}

/* Rational minimax approximation on [-4, 4], beyond which erf is 1 to float32 (the one of Eigen and XLA). */
INLINE float error_function(float x) {
    x = minimum(maximum(x, -4.0f), 4.0f);
    float s = x * x, p = -2.72614225801306e-10f, q = -1.45660718464996e-05f;
    p = p * s + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    q = q * s - 2.13374055278905e-04f;
    q = q * s - 1.68282697438203e-03f;
    q = q * s - 7.37332916720468e-03f;
    q = q * s - 1.42647390514189e-02f;
    return x * p / q;
}

static void rms_norm(const float *restrict x, const float *restrict weight, float eps, float *restrict y, int n) {
    float partial[16] = {0}, sum = 0;
    int j = 0;
    for (; j + 16 <= n; j += 16)
        for (int i = 0; i < 16; i++) partial[i] += x[j + i] * x[j + i];
    for (; j < n; j++) sum += x[j] * x[j];
    for (int i = 0; i < 16; i++) sum += partial[i];
    float r = 1.0f / __builtin_sqrtf(sum / n + eps);
    LOOP(n) y[j] = x[j] * r * weight[j];
}

/* x (n) and the `taps - 1` inputs before it -> y (n); x then becomes the last of those inputs, and the first drops out. */
static void convolve(const layer *l, const float *restrict x, float *past, float *restrict y, int n) {
    const int before = l->taps - 1;
    const float *restrict present = l->tap + (int64_t)before * n, *restrict bias = l->tap_bias;
    LOOP(n) y[j] = bias[j] + x[j] * present[j];
    for (int i = 0; i < before; i++) {
        const float *tap = l->tap + (int64_t)i * n, *old = past + (int64_t)i * n;
        LOOP(n) y[j] += old[j] * tap[j];
    }
    if (before) {
        memmove(past, past + n, sizeof(float) * n * (before - 1));
        memcpy(past + (int64_t)n * (before - 1), x, sizeof(float) * n);
    }
}

/* The next hidden state h (n), in place, from the projection p: gate logits, then candidates. */
static void cell(int64_t kind, const float *restrict p, float *restrict h, int n) {
    if (kind == MINGRU) {
        LOOP(n) h[j] = h[j] + sigmoid(p[j]) * (g(p[n + j]) - h[j]);
    } else {
        LOOP(n) h[j] = h[j] + share(p[j], p[n + j]) * (g(p[2 * n + j]) - h[j]);
    }
}

/* The gates z (n) of the projection p: the share of the candidate in the next state. */
static void gates(int64_t kind, const float *restrict p, float *restrict z, int n) {
    if (kind == MINGRU) {
        LOOP(n) z[j] = sigmoid(p[j]);
    } else {
        LOOP(n) z[j] = share(p[j], p[n + j]);
    }
}

static void activate(int64_t kind, float *p, int n) {
    const float *up = p + n; /* SwiGLU's second half */
    if (kind == RELU2) {
        LOOP(n) p[j] = maximum(p[j], 0.0f) * maximum(p[j], 0.0f);
    } else if (kind == GELU) {
        LOOP(n) p[j] = 0.5f * p[j] * (1.0f + error_function(p[j] * 0x1.6a09e6p-1f));
    } else {
        LOOP(n) p[j] = p[j] * sigmoid(p[j]) * up[j];
    }
}

/* ---- matrix times vectors ---- */

/* The weights of one block for one input, or of INT8 for two: vectors [input][half of the block]. */
INLINE void load(int type, const char *at, vector w[4]) {
    if (type == FLOAT32) {
        w[0] = *(const vector *)at, w[1] = *((const vector *)at + 1);
    } else if (type == BFLOAT16) {
        words all = *(const words *)at;
        w[0] = (vector)(all << 16), w[1] = (vector)(all & 0xffff0000u);
    } else {
        words all = *(const words *)at;
        EACH(i, 4) w[i] = __builtin_convertvector((integers)((all << (24 - 8 * i)) & 0xff000000u), vector);
    }
}

/* y (R rows, G blocks) = or += x (R, K) times the matrix. R and G are constants, so that the sums stay in registers. */
INLINE void tile(const int type, const int R, const int G, const matrix *m, int64_t block, const float *x, int64_t x_row,
                 float *y, int64_t y_row, int add) {
    const int inputs = type == INT8 ? 2 : 1, bytes = type == FLOAT32 ? 8 * LANES : 4 * LANES;
    const int64_t K = m->K, stride = (K + inputs - 1) / inputs * bytes; /* from block to block */
    const char *weight = m->weight + block * stride;
    vector sum[2 * TILE];
    EACH(i, 2 * R * G) sum[i] = (vector){0};
    for (int64_t k = 0; k < K; k += inputs) {
        EACH(g, G) { /* one block's weights at a time: those of all would not fit into the registers */
            vector w[4];
            load(type, weight + g * stride, w);
            EACH(j, inputs) {
                const float *x_k = x + (k + j < K ? k + j : k);
                EACH(r, R) EACH(i, 2) sum[2 * (G * r + g) + i] += x_k[r * x_row] * w[2 * j + i];
            }
        }
        weight += bytes;
    }
    EACH(r, R) EACH(i, 2 * G) {
        const int64_t n = block * BLOCK + i * LANES;
        vector s = sum[2 * G * r + i], *out = (vector *)(y + r * y_row + n);
        if (type == INT8) s *= *(const vector *)(m->scale + n) * 0x1p-24f;
        s += *(const vector *)(m->bias + n);
        *out = add ? *out + s : s;
    }
}

INLINE void multiply_as(const int type, const matrix *m, const float *x, int64_t x_row, float *y, int64_t y_row,
                        int rows, int add) {
    const int most = type == INT8 && LANES < 16 ? 4 : TILE; /* INT8 has twice the weights in registers */
    const int64_t blocks = (m->N + BLOCK - 1) / BLOCK;
    int64_t b = 0;
    if (rows == 1) {
        for (; b + WIDE <= blocks; b += WIDE) tile(type, 1, WIDE, m, b, x, x_row, y, y_row, add);
        for (; b < blocks; b++) tile(type, 1, 1, m, b, x, x_row, y, y_row, add);
        return;
    }
    for (; b < blocks; b++) {
        int r = 0;
        for (; r + most <= rows; r += most) tile(type, most, 1, m, b, x + r * x_row, x_row, y + r * y_row, y_row, add);
        for (; r + 4 <= rows; r += 4) tile(type, 4, 1, m, b, x + r * x_row, x_row, y + r * y_row, y_row, add);
        for (; r < rows; r++) tile(type, 1, 1, m, b, x + r * x_row, x_row, y + r * y_row, y_row, add);
    }
}

static void multiply(int64_t type, const matrix *m, const float *x, int64_t x_row, float *y, int64_t y_row, int rows,
                     int add) {
    if (type == FLOAT32) multiply_as(FLOAT32, m, x, x_row, y, y_row, rows, add);
    else if (type == BFLOAT16) multiply_as(BFLOAT16, m, x, x_row, y, y_row, rows, add);
    else multiply_as(INT8, m, x, x_row, y, y_row, rows, add);
}

/* ---- the model ---- */

INLINE int64_t padded(int64_t n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

/* A layer's state and the rows that go through it. Rows of a batch have a state each. Those of one text, which follow
 * each other, pass one on: then h (rows, hidden) becomes the states after each of them, `before` is the one before. */
typedef struct {
    float *h, *past, *z; /* z: becomes the gates (rows, hidden), unless null */
    const float *before; /* null for rows of a batch */
} memory;

/* x (rows, D) through one layer, in place. */
static void step_layer(const model *m, const layer *l, float *x, float *y, float *wide, int rows, memory s) {
    const int64_t D = m->width, row = padded(D), wide_row = m->widest, H = l->hidden;
    const int64_t past = s.before ? 0 : (l->taps - 1) * D;
    for (int r = 0; r < rows; r++) {
        if (l->taps) {
            rms_norm(x + r * row, l->norm_mixer, m->eps, wide, D);
            convolve(l, wide, s.past + r * past, y + r * row, D);
        } else {
            rms_norm(x + r * row, l->norm_mixer, m->eps, y + r * row, D);
        }
    }
    multiply(m->type, &l->projection, y, row, wide, wide_row, rows, 0);
    for (int r = 0; r < rows; r++) {
        float *h = s.h + r * H;
        if (s.before) memcpy(h, r ? h - H : s.before, sizeof(float) * H);
        if (s.z) gates(l->kind, wide + r * wide_row, s.z + r * H, H);
        cell(l->kind, wide + r * wide_row, h, H);
    }
    if (l->down.weight) {
        multiply(m->type, &l->down, s.h, H, x, row, rows, 1);
    } else {
        for (int r = 0; r < rows; r++) {
            const float *h = s.h + r * H;
            LOOP((int)D) x[r * row + j] += h[j];
        }
    }
    for (int r = 0; r < rows; r++) rms_norm(x + r * row, l->norm_mlp, m->eps, y + r * row, D);
    multiply(m->type, &l->mlp_up, y, row, wide, wide_row, rows, 0);
    for (int r = 0; r < rows; r++) activate(l->mlp, wide + r * wide_row, l->mlp_hidden);
    multiply(m->type, &l->mlp_down, wide, wide_row, x, row, rows, 1);
}

INLINE int64_t work_of(const model *m) { return 2 * padded(m->width) + m->widest; } /* floats that a row works with */

/* One step of the whole model: ids (rows) -> logits (rows, V), states in place: those of the rows `first` ..
 * `first + rows` of a batch or, with h, the one of a text whose rows follow each other (see `trace`). */
static void step(const model *m, int64_t first, int rows, const int64_t *ids, float *logits, float *const *state,
                 float *const *h, float *const *z, float *x) {
    const int64_t D = m->width, V = m->vocabulary, row = padded(D);
    float *y = x + rows * row, *wide = y + rows * row;
    for (int r = 0; r < rows; r++) memcpy(x + r * row, m->embedding + ids[r] * D, sizeof(float) * D);
    for (int64_t i = 0; i < m->layers; i++) {
        const layer *l = m->layer + i;
        const int64_t H = l->hidden, past = (l->taps - 1) * D;
        memory s = {h ? h[i] : state[0] + first * H, 0, z ? z[i] : 0, h ? state[0] : 0};
        if (l->taps) s.past = state[1] + first * past;
        step_layer(m, l, x, y, wide, rows, s);
        if (h) memcpy(state[0], h[i] + (rows - 1) * H, sizeof(float) * H);
        state += 1 + (l->taps != 0);
    }
    for (int r = 0; r < rows; r++) rms_norm(x + r * row, m->norm, m->eps, y + r * row, D);
    multiply(m->type, &m->head, y, row, wide, m->widest, rows, 0);
    for (int r = 0; r < rows; r++) memcpy(logits + r * V, wide + r * m->widest, sizeof(float) * V);
}

/* Whether all ids (n) are in the vocabulary. */
static int known(const model *m, int64_t n, const int64_t *ids) {
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= m->vocabulary) return 0;
    return 1;
}

/* n characters of one text: ids (n) -> the logits after each of them (n, V), and of every layer the states h and, where
 * z is not null, the gates z after each of them, (n, hidden) each. To the bit what n calls of `decode` compute, but
 * weights are read once for all. `state` lists each layer's tensors as for `decode`, of one row. `work` has n rows of
 * `work_of` floats. */
int trace(const model *m, int n, const int64_t *ids, float *logits, float *const *state, float *const *h,
          float *const *z, float *work) {
    if (!known(m, n, ids)) return BAD_ID;
    if (n) step(m, 0, n, ids, logits, state, h, z, work);
    return 0;
}

int64_t packed_lanes(void) { return LANES; }

/* One id by inverting the cumulative distribution, in float64 as lm.sampling does; the last of the vocabulary is the
 * unknown and never chosen. At temperature 0 the first of the largest. */
static int64_t choose(const float *logits, int64_t V, double temperature, double uniform, double *cumulative) {
    int64_t best = 0, n = V > 1 ? V - 1 : V, id = 0;
    for (int64_t j = 1; j < n; j++)
        if (logits[j] > logits[best]) best = j;
    if (temperature == 0) return best;
    double sum = 0;
    for (int64_t j = 0; j < n; j++) {
        sum += exp(((double)logits[j] - logits[best]) / temperature);
        cumulative[j] = sum;
    }
    while (id < n - 1 && cumulative[id] <= uniform * sum) id++;
    return id;
}

/* The arguments of `decode`, and the groups of rows that threads take one by one. */
typedef struct {
    const model *m;
    int64_t B, n, groups, next_group;
    const double *uniform;
    double temperature;
    int64_t *ids;
    float *logits, *const *state;
    int failed;
} task;

static void *decode_groups(void *argument) {
    task *t = argument;
    const int64_t V = t->m->vocabulary;
    double *cumulative = malloc(sizeof(double) * V);
    float *work = malloc(sizeof(float) * ROWS * work_of(t->m));
    int failed = cumulative && work ? 0 : NO_MEMORY;
    int64_t group;
    while (!failed && (group = __atomic_fetch_add(&t->next_group, 1, __ATOMIC_RELAXED)) < t->groups) {
        const int64_t first = group * t->B / t->groups, end = (group + 1) * t->B / t->groups;
        for (int64_t i = 0; i < t->n; i++) {
            int64_t *ids = t->ids + i * t->B;
            for (int64_t b = first; b < end && t->uniform; b++)
                ids[b] = choose(t->logits + b * V, V, t->temperature, t->uniform[i * t->B + b], cumulative);
            step(t->m, first, end - first, ids + first, t->logits + first * V, t->state, 0, 0, work);
        }
    }
    if (failed) __atomic_store_n(&t->failed, failed, __ATOMIC_RELAXED);
    free(work);
    free(cumulative);
    return 0;
}

/* n steps of B rows with ids (n, B). With uniform numbers (n, B) the ids are chosen from the logits (B, V) before each
 * step, else they are given. `state` lists each layer's tensors: h (B, hidden) and, with a convolution, its past inputs
 * (B, taps - 1, width). The last logits and state replace the first ones. Returns 0, BAD_ID or NO_MEMORY.
 *
 * Threads meet once per call, not once per step, and wait for each other asleep: where another process has a core, this
 * one does most of the groups itself. OpenMP's threads would spin there, and take the core from those they wait for. */
int decode(const model *m, int64_t B, int64_t n, const double *uniform, double temperature, int64_t *ids, float *logits,
           float *const *state, int64_t threads) {
    pthread_t helper[MOST];
    int helpers = 0;
    const int64_t rows = threads > 1 ? FEW : ROWS;
    task t = {m, B, n, (B + rows - 1) / rows, 0, uniform, temperature, ids, logits, state, 0};
    if (!uniform && !known(m, n * B, ids)) return BAD_ID;
    while (helpers < MOST && helpers + 1 < threads && helpers + 1 < t.groups) {
        if (pthread_create(helper + helpers, 0, decode_groups, &t)) break;
        helpers++;
    }
    decode_groups(&t);
    for (int i = 0; i < helpers; i++) pthread_join(helper[i], 0);
    return t.failed;
}
