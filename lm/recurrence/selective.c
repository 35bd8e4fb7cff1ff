/* Mamba's selective scan on a CPU, forward and backward: the kernels behind selective.py.
 *
 *     dt_t = softplus(delta_t)      h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t      y_t = C_t h_t + skip u_t
 *
 * Every channel has N numbers of state. The states of all steps would be N times as large as anything else, so forward
 * keeps those before every CHUNK-th step, and backward computes the others again from them, one chunk at a time.
 *
 * Threads take pieces (batch row, block of channels) from one queue. B and C are shared by the channels, A and skip by
 * the batch: each piece sums their gradients on its own, and the pieces' sums are added up in a fixed order, so that
 * the result does not depend on the number of threads or their timing.
 */
#include "kernel.h"

enum {
    CHUNK = 32,  /* steps between two states that are kept */
    WIDTH = 64,  /* channels of a block, at most: its states of a chunk stay in the second-level cache */
    VECTOR = 32, /* a block's width is a multiple of this */
    PIECES = 8,  /* where the call is large enough; a constant, for the sums to be cut alike everywhere */
};

typedef struct {
    int32_t type, backward, threads;
    int64_t B, T, D, N;
    view u, delta;      /* (B, T, D) */
    view b, c;          /* (B, T, N) */
    view y;             /* (B, T, D): written by forward; grad_y in backward */
    view grad_u, grad_delta, grad_b, grad_c; /* backward only */
    const float *A, *skip;                   /* (N, D), (D) */
    float *grad_A, *grad_skip;
    float *starts;      /* (B, ceil(T / CHUNK), N, D): the states before every CHUNK-th step */
    const float *first; /* (B, N, D): the state that enters, h0 forward and grad_last backward; null for zero */
    float *last;        /* (B, N, D): the state that leaves, h_last forward and grad_h0 backward */
    float *memory;      /* backward: as many floats as selective_memory says */
} call;

/* n channels from d on in batch row b. */
typedef struct {
    int64_t b, block, d;
    int n;
} piece;

/* Sums of the pieces: of A's and skip's gradients by batch row, of B's and C's by block. */
typedef struct {
    float *A, *skip; /* (B, N, D), (B, D) */
    float *b, *c;    /* (blocks, B, T, N) */
} sums;

/* ---- gates ---- */

/* log(1 + exp(x)), with all digits where it is small: log(1 + e) = 2 artanh(e / (2 + e)). */
INLINE float softplus(float x) {
    float e = exp_negative(-absolute(x)), s = e / (2.0f + e), q = s * s;
    float p = 2.0f / 15;
    p = p * q + 2.0f / 13;
    p = p * q + 2.0f / 11;
    p = p * q + 2.0f / 9;
    p = p * q + 2.0f / 7;
    p = p * q + 2.0f / 5;
    p = p * q + 2.0f / 3;
    p = p * q + 2.0f;
    return maximum(x, 0.0f) + s * p;
}

/* ---- blocks of state: N rows of WIDTH floats ---- */

static void gather(float *restrict block, const float *data, int64_t stride, int64_t N, int n) {
    for (int64_t i = 0; i < N; i++)
        if (data) memcpy(block + i * WIDTH, data + i * stride, n * sizeof(float));
        else memset(block + i * WIDTH, 0, n * sizeof(float));
}

static void scatter(float *data, const float *restrict block, int64_t stride, int64_t N, int n) {
    for (int64_t i = 0; i < N; i++) memcpy(data + i * stride, block + i * WIDTH, n * sizeof(float));
}

INLINE int64_t chunks_of(const call *c) { return (c->T + CHUNK - 1) / CHUNK; }

/* The piece's part of a (B, N, D) tensor, and of the states before a chunk. */
INLINE const float *state_in(const call *c, const float *states, const piece *p) {
    return states ? states + p->b * c->N * c->D + p->d : 0;
}

INLINE float *start_of(const call *c, const piece *p, int64_t chunk) {
    return c->starts + (p->b * chunks_of(c) + chunk) * c->N * c->D + p->d;
}

/* ---- rows ---- */

/* Step sizes dt and inputs dt u of a row. */
INLINE void prepare(const call *c, const piece *p, int64_t t, float *restrict dt, float *restrict x) {
    float u_buffer[WIDTH], delta_buffer[WIDTH];
    const int n = p->n;
    const float *u = read(c->type, at(c->u, c->type, p->b, t, p->d), n, u_buffer);
    const float *delta = read(c->type, at(c->delta, c->type, p->b, t, p->d), n, delta_buffer);
    LOOP(n) {
        dt[j] = softplus(delta[j]);
        x[j] = dt[j] * u[j];
    }
}

INLINE void forward_row(const call *c, const piece *p, int64_t t, const float *restrict A, float *restrict h,
                        float *restrict shared) {
    float dt[WIDTH], x[WIDTH], u_buffer[WIDTH], y_buffer[WIDTH];
    const int n = p->n, N = c->N;
    const float *u = read(c->type, at(c->u, c->type, p->b, t, p->d), n, u_buffer);
    const float *b = read(c->type, at(c->b, c->type, p->b, t, 0), N, shared);
    const float *read_out = read(c->type, at(c->c, c->type, p->b, t, 0), N, shared + N);
    const float *skip = c->skip + p->d;
    output y = open_row(c->type, at(c->y, c->type, p->b, t, p->d), y_buffer);
    prepare(c, p, t, dt, x);
    LOOP(n) y.values[j] = skip[j] * u[j];
    for (int i = 0; i < N; i++, A += WIDTH, h += WIDTH) {
        const float b_i = b[i], c_i = read_out[i];
        LOOP(n) {
            h[j] = exp_negative(dt[j] * A[j]) * h[j] + x[j] * b_i;
            y.values[j] += c_i * h[j];
        }
    }
    store(c->type, y, n);
}

/* The same steps again for backward: keeps exp(dt A) and the state after the step. */
INLINE void repeat_row(const call *c, const piece *p, int64_t t, const float *restrict A, const float *restrict dt,
                       const float *restrict x, const float *restrict previous, float *restrict h,
                       float *restrict decay, float *restrict shared) {
    const int n = p->n, N = c->N;
    const float *b = read(c->type, at(c->b, c->type, p->b, t, 0), N, shared);
    for (int i = 0; i < N; i++, A += WIDTH, previous += WIDTH, h += WIDTH, decay += WIDTH) {
        const float b_i = b[i];
        LOOP(n) {
            decay[j] = exp_negative(dt[j] * A[j]);
            h[j] = decay[j] * previous[j] + x[j] * b_i;
        }
    }
}

/* What backward has in memory of a chunk and a piece. */
typedef struct {
    float *A, *state, *grad_A, *grad_skip; /* N rows each; grad_skip one row */
    float *h, *decay;                      /* CHUNK + 1 and CHUNK blocks of N rows */
    float *dt, *x;                         /* CHUNK rows */
    float *shared;                         /* b and c of a step, 2 N */
} workspace;

/* On entry state is the gradient that reaches h_t from h_{t+1}, on exit what h_t passes on to h_{t-1}. */
INLINE void backward_row(const call *c, const sums *total, const piece *p, int64_t t, const workspace *w) {
    float u_buffer[WIDTH], delta_buffer[WIDTH], y_buffer[WIDTH], du_buffer[WIDTH], ddelta_buffer[WIDTH];
    float dx[WIDTH], ddt[WIDTH];
    const int type = c->type, n = p->n, N = c->N, k = t % CHUNK, size = N * WIDTH;
    const float *b = read(type, at(c->b, type, p->b, t, 0), N, w->shared);
    const float *read_out = read(type, at(c->c, type, p->b, t, 0), N, w->shared + N);
    const float *u = read(type, at(c->u, type, p->b, t, p->d), n, u_buffer);
    const float *delta = read(type, at(c->delta, type, p->b, t, p->d), n, delta_buffer);
    const float *dy = read(type, at(c->y, type, p->b, t, p->d), n, y_buffer);
    const float *dt = w->dt + k * WIDTH, *x = w->x + k * WIDTH, *skip = c->skip + p->d;
    const int64_t sum = ((p->block * c->B + p->b) * c->T + t) * N;
    LOOP(n) dx[j] = ddt[j] = 0.0f;
    for (int i = 0; i < N; i++) {
        const float *previous = w->h + k * size + i * WIDTH, *h = previous + size, *A = w->A + i * WIDTH;
        const float *decay = w->decay + k * size + i * WIDTH;
        float *restrict state = w->state + i * WIDTH, *restrict grad_A = w->grad_A + i * WIDTH;
        const float b_i = b[i], c_i = read_out[i];
        float db = 0.0f, dc = 0.0f;
        _Pragma("omp simd reduction(+ : db, dc)") for (int j = 0; j < n; j++) {
            float s = state[j] + c_i * dy[j], passed = s * decay[j], v = passed * previous[j];
            dc += dy[j] * h[j];
            db += s * x[j];
            dx[j] += s * b_i;
            ddt[j] += v * A[j];
            grad_A[j] += v * dt[j];
            state[j] = passed;
        }
        total->b[sum + i] = db;
        total->c[sum + i] = dc;
    }
    output du = open_row(type, at(c->grad_u, type, p->b, t, p->d), du_buffer);
    output ddelta = open_row(type, at(c->grad_delta, type, p->b, t, p->d), ddelta_buffer);
    LOOP(n) {
        du.values[j] = dx[j] * dt[j] + skip[j] * dy[j];
        ddelta.values[j] = (dx[j] * u[j] + ddt[j]) * sigmoid(delta[j]);
        w->grad_skip[j] += dy[j] * u[j];
    }
    store(type, du, n);
    store(type, ddelta, n);
}

/* ---- pieces ---- */

static int64_t workspace_size(const call *c) {
    const int64_t block = c->N * WIDTH;
    return c->backward ? (4 + 2 * CHUNK) * block + (2 * CHUNK + 1) * WIDTH + 2 * c->N : 2 * block + 2 * c->N;
}

INLINE void forward_piece(const call *c, const piece *p, float *memory) {
    float *A = memory, *h = A + c->N * WIDTH, *shared = h + c->N * WIDTH;
    gather(A, c->A + p->d, c->D, c->N, p->n);
    gather(h, state_in(c, c->first, p), c->D, c->N, p->n);
    for (int64_t t = 0; t < c->T; t++) {
        if (t % CHUNK == 0) scatter(start_of(c, p, t / CHUNK), h, c->D, c->N, p->n);
        forward_row(c, p, t, A, h, shared);
    }
    scatter((float *)state_in(c, c->last, p), h, c->D, c->N, p->n);
}

INLINE void backward_piece(const call *c, const sums *total, const piece *p, float *memory) {
    const int64_t size = c->N * WIDTH;
    workspace w = {.A = memory};
    w.state = w.A + size, w.grad_A = w.state + size, w.h = w.grad_A + size, w.decay = w.h + (CHUNK + 1) * size;
    w.dt = w.decay + CHUNK * size, w.x = w.dt + CHUNK * WIDTH, w.grad_skip = w.x + CHUNK * WIDTH;
    w.shared = w.grad_skip + WIDTH;
    gather(w.A, c->A + p->d, c->D, c->N, p->n);
    gather(w.state, state_in(c, c->first, p), c->D, c->N, p->n);
    memset(w.grad_A, 0, size * sizeof(float));
    memset(w.grad_skip, 0, WIDTH * sizeof(float));
    for (int64_t chunk = chunks_of(c) - 1; chunk >= 0; chunk--) {
        const int64_t from = chunk * CHUNK, steps = clamp(c->T - from, 0, CHUNK);
        gather(w.h, start_of(c, p, chunk), c->D, c->N, p->n);
        for (int64_t k = 0; k < steps; k++) {
            float *dt = w.dt + k * WIDTH, *x = w.x + k * WIDTH, *h = w.h + k * size;
            prepare(c, p, from + k, dt, x);
            repeat_row(c, p, from + k, w.A, dt, x, h, h + size, w.decay + k * size, w.shared);
        }
        for (int64_t k = steps - 1; k >= 0; k--) backward_row(c, total, p, from + k, &w);
    }
    scatter((float *)state_in(c, c->last, p), w.state, c->D, c->N, p->n);
    scatter(total->A + p->b * c->N * c->D + p->d, w.grad_A, c->D, c->N, p->n);
    memcpy(total->skip + p->b * c->D + p->d, w.grad_skip, p->n * sizeof(float));
}

INLINE void work(const call *c, const sums *total, piece p, float *memory) {
    if (c->backward) backward_piece(c, total, &p, memory);
    else forward_piece(c, &p, memory);
}

/* ---- the call ---- */

/* The sum of so many rows of n floats, `stride` apart, is written into one of them, the first. */
static void add_up(float *restrict rows, int64_t count, int64_t stride, int n) {
    for (int64_t i = 1; i < count; i++) {
        const float *row = rows + i * stride;
        LOOP(n) rows[j] += row[j];
    }
}

static void add_up_shared(const call *c, float *sum, view grad, int64_t blocks, int64_t row) {
    output out = {sum, (uint16_t *)at(grad, c->type, row / c->T, row % c->T, 0)};
    add_up(sum, blocks, c->B * c->T * c->N, c->N);
    if (c->type == FLOAT32) memcpy(out.half, sum, c->N * sizeof(float));
    else store(c->type, out, c->N);
}

/* Channels of a block: as many as WIDTH, unless there would be too few pieces. */
static int64_t width_of(const call *c) {
    const int64_t per_row = (PIECES + c->B - 1) / c->B, width = (c->D + per_row - 1) / per_row;
    return clamp((width + VECTOR - 1) / VECTOR * VECTOR, VECTOR, WIDTH);
}

static int64_t blocks_of(const call *c) { return (c->D + width_of(c) - 1) / width_of(c); }

int64_t selective_memory(const call *c) {
    return c->B * (c->N + 1) * c->D + 2 * blocks_of(c) * c->B * c->T * c->N;
}

static sums sums_of(const call *c) {
    sums s = {.A = c->memory};
    s.skip = s.A + c->B * c->N * c->D;
    s.b = s.skip + c->B * c->D;
    s.c = s.b + blocks_of(c) * c->B * c->T * c->N;
    return s;
}

static void add_up_all(const call *c, const sums *total) {
    const int64_t rows = c->B * c->T, blocks = blocks_of(c);
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < rows; row++) {
        add_up_shared(c, total->b + row * c->N, c->grad_b, blocks, row);
        add_up_shared(c, total->c + row * c->N, c->grad_c, blocks, row);
    }
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i <= c->N; i++) {
        float *sum = i < c->N ? total->A + i * c->D : total->skip;
        add_up(sum, c->B, i < c->N ? c->N * c->D : c->D, c->D);
        memcpy(i < c->N ? c->grad_A + i * c->D : c->grad_skip, sum, c->D * sizeof(float));
    }
}

/* Returns 0, or 1 when there is no memory. */
int selective_scan(const call *c) {
    const int64_t width = width_of(c), blocks = blocks_of(c);
    const sums total = sums_of(c);
    int failed = 0;
#pragma omp parallel num_threads(c->threads)
    {
        float *memory = aligned_alloc(64, (workspace_size(c) * sizeof(float) + 63) / 64 * 64);
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < blocks * c->B; i++) {
            const int64_t block = i % blocks, d = block * width;
            const int n = clamp(c->D - d, 0, width);
            if (!memory) continue;
            if (n == WIDTH) work(c, &total, (piece){i / blocks, block, d, WIDTH}, memory); /* loops without remainders */
            else work(c, &total, (piece){i / blocks, block, d, n}, memory);
        }
        if (c->backward) add_up_all(c, &total);
        free(memory);
    }
    return failed;
}
