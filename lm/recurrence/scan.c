/* h_t = a_t h_{t-1} + b_t on a CPU, forward and backward: the kernels that cpu.py calls.
 *
 * There are three kinds of inputs:
 *     LINEAR   a, b       as they are
 *     MINGRU   k, c       a = sigmoid(-k), b = sigmoid(k) g(c)
 *     MINLSTM  f, i, c    the same with k = softplus(-f) - softplus(-i)
 *
 * A call is cut into pieces (batch row, block of channels, chunk of time) that threads take from one queue. There are
 * many more pieces than threads, so that a core that is busy elsewhere delays little. Within a piece the outer loop runs
 * over time, the inner, vectorised one over channels. All arithmetic is float32; only h is kept for backward.
 */
#include "kernel.h"
#ifdef __linux__
#include <sys/mman.h>
#endif

enum { LINEAR, MINGRU, MINLSTM };
enum {
    WIDTH = 512,     /* channels of a block, at most: its rows stay in the first-level cache */
    MIN_WIDTH = 128, /* at least, if there are as many: narrow columns of a wide tensor are slow to read */
    MIN_CHUNK = 256, /* steps of a chunk, at least */
    PIECES = 8,      /* per thread, where the call is large enough */
    AHEAD = 4,       /* rows to prefetch: they are too far apart for the hardware to guess */
};

typedef struct {
    int32_t kind, type, backward, threads;
    int64_t B, T, D;
    view input[3];   /* a b | k c | f i c */
    view h;          /* written by forward, read by backward */
    view grad_h;     /* backward only, as are the next two */
    view grad[3];    /* of the inputs */
    const float *h0; /* (B, D), or null for zero */
    const float *first; /* (B, D): the state that enters the scan, h0 forward and grad_last backward; null for zero */
    float *last;        /* (B, D): the state that leaves it, h_last forward and grad_h0 backward */
} call;

/* n channels from d on in batch row b, in so many steps from t on; step is 1, or -1 backwards in time. */
typedef struct {
    int64_t b, d, t, steps;
    int step, n;
} piece;

/* ---- memory ---- */

/* The piece's part of row t. Its part of a row that will be needed soon is prefetched into the cache. */
INLINE void *row(const call *c, view v, const piece *p, int64_t t) {
    char *here = at(v, c->type, p->b, t, p->d);
    const char *ahead = here + AHEAD * p->step * v.time * size_of(c->type);
    for (int i = 0; i < p->n * size_of(c->type); i += 64) __builtin_prefetch(ahead + i);
    return here;
}

INLINE const float *read_row(const call *c, view v, const piece *p, int64_t t, float *buffer) {
    return read(c->type, row(c, v, p, t), p->n, buffer);
}

INLINE output write_row(const call *c, view v, const piece *p, int64_t t, float *buffer) {
    return open_row(c->type, row(c, v, p, t), buffer);
}

/* ---- gates ---- */

/* The gate values: keep = 1 - z, take = z, and for minLSTM dk/df and dk/di times z (1 - z). Where 1 - z would cancel,
 * keep is computed by itself. Where z is small, keep is 1 - z: computed by itself, its rounding error would be ten times
 * larger, and cells that remember for thousands of steps would accumulate it. */
typedef struct {
    float keep, take, to_f, to_i;
} gate;

INLINE gate mingru_gate(float k) {
    float e = exp_negative(-absolute(k)), r = 1.0f / (1.0f + e), q = e * r;
    return k >= 0 ? (gate){q, r, 0, 0} : (gate){1.0f - q, q, 0, 0};
}

/* f' = (1 + exp(-i)) / (2 + exp(-f) + exp(-i)), scaled so that the largest of the three exponentials is one. */
INLINE gate minlstm_gate(float f, float i) {
    f = maximum(f, -FLT_MAX), i = maximum(i, -FLT_MAX); /* infinities would be subtracted from each other */
    float low = minimum(minimum(f, i), 0.0f);
    float one = exp_negative(low), ef = exp_negative(low - f), ei = exp_negative(low - i);
    float r = 1.0f / (one + ef + (one + ei));
    float take = (one + ef) * r, keep = take < 0.5f ? 1.0f - take : (one + ei) * r;
    return (gate){keep, take, -keep * (ef * r), take * (ei * r)};
}

typedef struct {
    float value, slope;
} candidate;

/* g(c) = c + 1/2 for c >= 0, else sigmoid(c); and its derivative. */
INLINE candidate g(float c) {
    float e = exp_negative(minimum(c, 0.0f)), r = 1.0f / (1.0f + e), q = e * r;
    return c >= 0 ? (candidate){c + 0.5f, 1.0f} : (candidate){q, q * r};
}

/* ---- rows ---- */

static void coefficients(const call *c, const piece *p, int64_t t, float *restrict a, float *restrict b) {
    float buffer[3][WIDTH];
    const int n = p->n;
    const float *x = read_row(c, c->input[0], p, t, buffer[0]), *y = read_row(c, c->input[1], p, t, buffer[1]);
    if (c->kind == LINEAR) {
        LOOP(n) { a[j] = x[j]; b[j] = y[j]; }
    } else if (c->kind == MINGRU) {
        LOOP(n) {
            gate z = mingru_gate(x[j]);
            a[j] = z.keep;
            b[j] = z.take * g(y[j]).value;
        }
    } else {
        const float *w = read_row(c, c->input[2], p, t, buffer[2]);
        LOOP(n) {
            gate z = minlstm_gate(x[j], y[j]);
            a[j] = z.keep;
            b[j] = z.take * g(w[j]).value;
        }
    }
}

static void forward_row(const call *c, const piece *p, int64_t t, float *restrict state) {
    float a[WIDTH], b[WIDTH], buffer[WIDTH];
    const int n = p->n;
    coefficients(c, p, t, a, b);
    output h = write_row(c, c->h, p, t, buffer);
    LOOP(n) h.values[j] = state[j] = a[j] * state[j] + b[j];
    store(c->type, h, n);
}

/* On entry state is the gradient that reaches h_t from h_{t+1}, on exit what h_t passes on to h_{t-1}. */
static void backward_row(const call *c, const piece *p, int64_t t, float *restrict state) {
    static const float zero[WIDTH];
    float in[3][WIDTH], out[3][WIDTH], previous_buffer[WIDTH], grad_buffer[WIDTH];
    const int n = p->n, inputs = c->kind == MINLSTM ? 3 : 2;
    const float *x[3];
    output grad[3];
    for (int i = 0; i < inputs; i++) {
        x[i] = read_row(c, c->input[i], p, t, in[i]);
        grad[i] = write_row(c, c->grad[i], p, t, out[i]);
    }
    float *dx[3] = {grad[0].values, grad[1].values, inputs == 3 ? grad[2].values : 0};
    const float *grad_h = read_row(c, c->grad_h, p, t, grad_buffer);
    const float *previous = t > 0 ? read_row(c, c->h, p, t - 1, previous_buffer)
                            : c->h0 ? c->h0 + p->b * c->D + p->d : zero;
    if (c->kind == LINEAR) {
        LOOP(n) {
            float s = grad_h[j] + state[j];
            state[j] = x[0][j] * s;
            dx[0][j] = previous[j] * s;
            dx[1][j] = s;
        }
    } else if (c->kind == MINGRU) {
        LOOP(n) {
            gate z = mingru_gate(x[0][j]);
            candidate v = g(x[1][j]);
            float s = grad_h[j] + state[j];
            state[j] = z.keep * s;
            dx[0][j] = s * (v.value - previous[j]) * (z.take * z.keep);
            dx[1][j] = s * z.take * v.slope;
        }
    } else {
        LOOP(n) {
            gate z = minlstm_gate(x[0][j], x[1][j]);
            candidate v = g(x[2][j]);
            float s = grad_h[j] + state[j], w = s * (v.value - previous[j]);
            state[j] = z.keep * s;
            dx[0][j] = w * z.to_f;
            dx[1][j] = w * z.to_i;
            dx[2][j] = s * z.take * v.slope;
        }
    }
    for (int i = 0; i < inputs; i++) store(c->type, grad[i], n);
}

/* ---- pieces ---- */

/* Computes the rows of a piece. `state` is the entering state before and the leaving state after. */
static void advance(const call *c, const piece *p, float *state) {
    if (c->backward)
        for (int64_t i = 0; i < p->steps; i++) backward_row(c, p, p->t - i, state);
    else
        for (int64_t i = 0; i < p->steps; i++) forward_row(c, p, p->t + i, state);
}

INLINE piece reversed(piece p) {
    return (piece){p.b, p.d, p.t + (p.steps - 1) * p.step, p.steps, -p.step, p.n};
}

/* The map from the state that enters a piece to the state that leaves it: state -> product * state + sum.
 *
 * Goes from the piece's last step to its first, and stops when the product has decayed to zero, usually after some
 * hundred steps: only a cell that forgets nothing needs the whole piece. */
static void summarise(const call *c, const piece *passed, float *restrict product, float *restrict sum) {
    const piece back = reversed(*passed), *p = &back;
    float a[WIDTH], b[WIDTH], buffer[WIDTH];
    const int n = p->n;
    float left = 1.0f;
    LOOP(n) { product[j] = 1.0f; sum[j] = 0.0f; }
    for (int64_t i = 0; i < p->steps && left > 0.0f; i++) {
        int64_t t = p->t + i * p->step;
        coefficients(c, p, t, a, b);
        if (c->backward) { /* s_t = grad_t + state, and a_t s_t leaves */
            const float *grad_h = read_row(c, c->grad_h, p, t, buffer);
            LOOP(n) b[j] = a[j] * grad_h[j];
        }
        left = 0.0f;
        _Pragma("omp simd reduction(max : left)") for (int j = 0; j < n; j++) {
            sum[j] += product[j] * b[j];
            float rest = product[j] * a[j], size = absolute(rest);
            product[j] = rest = size > 1e-30f ? rest : 0.0f;
            left = size > 1e-30f && size > left ? size : left;
        }
    }
}

/* ---- the call ---- */

typedef struct {
    int64_t blocks, chunks, pieces;
} plan;

/* Enough pieces for the threads: cut by batch row, then by channels, last by time, where pieces are read twice. */
static plan cut(const call *c) {
    int64_t wanted = c->threads > 1 ? PIECES * c->threads : 1, fewest = (c->D + WIDTH - 1) / WIDTH;
    int64_t blocks = clamp((wanted + c->B - 1) / c->B, fewest, clamp(c->D / MIN_WIDTH, fewest, c->D));
    int64_t chunks = clamp(wanted / (c->B * blocks), 1, clamp(c->T / MIN_CHUNK, 1, c->T));
    return (plan){blocks, chunks, c->B * blocks * chunks};
}

/* Piece i of the plan, chunks counted in the order in which the state passes through them. */
static piece choose(const call *c, const plan *s, int64_t i, int64_t *chunk) {
    int64_t block = i % s->blocks, b = i / s->blocks % c->B;
    int64_t from = block * c->D / s->blocks, to = (block + 1) * c->D / s->blocks;
    *chunk = i / (s->blocks * c->B);
    int64_t order = c->backward ? s->chunks - 1 - *chunk : *chunk;
    int64_t start = order * c->T / s->chunks, stop = (order + 1) * c->T / s->chunks;
    piece p = {b, from, start, stop - start, 1, to - from};
    return c->backward ? reversed(p) : p;
}

/* A summary stops where nothing of the entering state is left, so that it can miss a NaN or an infinity before that
 * place. Every chunk that such a state enters is walked again from it. */
static void repair(const call *c, const plan *s, float *state) {
    const int64_t width = c->B * c->D;
    for (int64_t i = c->B * s->blocks; i < s->pieces; i++) {
        int64_t chunk;
        piece p = choose(c, s, i, &chunk);
        float *leaving = state + chunk * width + p.b * c->D + p.d, *entering = leaving - width;
        int finite = 1;
        for (int j = 0; j < p.n; j++) finite &= absolute(entering[j]) <= FLT_MAX;
        if (finite) continue;
        memcpy(leaving, entering, p.n * sizeof(float));
        advance(c, &p, leaving);
    }
}

/* The next piece of a thread's share that nobody has taken yet; 0 if there is none. */
INLINE int take(const plan *s, int64_t *taken, int owner, int threads, int64_t *piece) {
    const int64_t start = owner * s->pieces / threads, end = (owner + 1) * s->pieces / threads;
    *piece = start + __atomic_fetch_add(taken + owner, 1, __ATOMIC_RELAXED);
    return *piece < end;
}

/* Returns 0, or 1 when there is no memory. */
int scan(const call *c) {
    const plan s = cut(c);
    const int64_t width = c->B * c->D;
    float *state = malloc(2 * s.chunks * width * sizeof(float)), *product = state + s.chunks * width;
    int64_t taken[c->threads];
    memset(taken, 0, sizeof taken);
    if (!state) return 1;
    if (c->first) memcpy(state, c->first, width * sizeof(float));
    else memset(state, 0, width * sizeof(float));
#pragma omp parallel num_threads(c->threads)
    {
        if (s.chunks > 1) {
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < s.pieces - c->B * s.blocks; i++) {
                int64_t chunk;
                piece p = choose(c, &s, i, &chunk);
                int64_t next = (chunk + 1) * width + p.b * c->D + p.d;
                summarise(c, &p, product + next, state + next);
            }
#pragma omp single
            for (int64_t i = width; i < s.chunks * width; i++) state[i] += product[i] * state[i - width];
        }
#pragma omp for schedule(static)
        for (int t = 0; t < c->threads; t++) /* a thread's rows are in its cache: other operations share them out alike */
            for (int other = 0; other < c->threads; other++)
                for (int64_t i; take(&s, taken, (t + other) % c->threads, c->threads, &i);) {
                    int64_t chunk;
                    piece p = choose(c, &s, i, &chunk);
                    advance(c, &p, state + chunk * width + p.b * c->D + p.d);
                }
    }
    repair(c, &s, state);
    memcpy(c->last, state + (s.chunks - 1) * width, width * sizeof(float));
    free(state);
    return 0;
}

/* Ask for huge pages before new memory is written: page faults of small pages take as long as the scan. */
void expect(char *data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = 1 << 21, address = (uintptr_t)data;
    const uintptr_t start = (address + page - 1) & -page, stop = (address + bytes) & -page;
    if (start < stop) madvise((void *)start, stop - start, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}
