/* Operations of few passes: RMS norm, squared ReLU, causal convolution, cross-entropy, dropout, the norm of several tensors.
 *
 * Rows are read and written in tiles of channels, as floats. Gradients of weights are sums over all rows; they are made
 * in CHUNKS parts and then added up, so that they do not depend on the number of threads.
 */
#include <math.h>

#include "kernel.h"

enum { CHUNKS = 32, TILE = 512 };

/* The number of elements of the tile that begins at the i-th of `count`. */
INLINE int tile_size(int64_t count, int64_t i) { return count - i < TILE ? count - i : TILE; }

INLINE char *element(int type, const void *data, int64_t i) { return (char *)data + i * size_of(type); }

/* The sum of CHUNKS vectors of n floats. */
static void add_up(const float *parts, int64_t n, float *sum) {
    memcpy(sum, parts, n * sizeof(float));
    for (int chunk = 1; chunk < CHUNKS; chunk++)
        for (int64_t i = 0; i < n; i++) sum[i] += parts[chunk * n + i];
}

/* ---- RMS norm: y = weight x / sqrt(mean(x^2) + eps) ---- */

typedef struct {
    int32_t type, y_type, threads;
    float eps;
    int64_t N, D; /* rows and channels */
    const char *x;
    const float *weight;
    char *y;
    float *scale; /* (N), 1 / sqrt(mean(x^2) + eps) */
    const char *grad_y;
    const char *residual; /* of x's type, added to grad_x; or null */
    char *grad_x;
    float *grad_weight;
} norm;

void norm_forward(const norm *c) {
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < c->N; r++) {
        float x_buffer[TILE], y_buffer[TILE], sum = 0;
        for (int64_t d = 0; d < c->D; d += TILE) {
            const int n = tile_size(c->D, d);
            const float *x = read(c->type, element(c->type, c->x, r * c->D + d), n, x_buffer);
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < n; j++) sum += x[j] * x[j];
        }
        const float scale = c->scale[r] = 1.0f / sqrtf(sum / c->D + c->eps);
        for (int64_t d = 0; d < c->D; d += TILE) {
            const int n = tile_size(c->D, d);
            const float *x = read(c->type, element(c->type, c->x, r * c->D + d), n, x_buffer), *w = c->weight + d;
            output y = open_row(c->y_type, element(c->y_type, c->y, r * c->D + d), y_buffer);
            LOOP(n) y.values[j] = x[j] * scale * w[j];
            store(c->y_type, y, n);
        }
    }
}

/* With u = x scale and g = weight grad_y: grad_x = scale (g - u mean(u g)), grad_weight = sum over rows of u grad_y. */
static void norm_backward_row(const norm *c, int64_t r, float *grad_weight) {
    static const float zero[TILE];
    float x_buffer[TILE], g_buffer[TILE], residual_buffer[TILE], grad_buffer[TILE], sum = 0;
    const float scale = c->scale[r];
    for (int64_t d = 0; d < c->D; d += TILE) {
        const int n = tile_size(c->D, d);
        const float *x = read(c->type, element(c->type, c->x, r * c->D + d), n, x_buffer), *w = c->weight + d;
        const float *g = read(c->y_type, element(c->y_type, c->grad_y, r * c->D + d), n, g_buffer);
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < n; j++) sum += x[j] * scale * (w[j] * g[j]);
    }
    const float mean = sum / c->D;
    for (int64_t d = 0; d < c->D; d += TILE) {
        const int n = tile_size(c->D, d);
        const float *x = read(c->type, element(c->type, c->x, r * c->D + d), n, x_buffer), *w = c->weight + d;
        const float *g = read(c->y_type, element(c->y_type, c->grad_y, r * c->D + d), n, g_buffer);
        const float *more = c->residual ? read(c->type, element(c->type, c->residual, r * c->D + d), n, residual_buffer) : zero;
        float *total = grad_weight + d;
        output grad = open_row(c->type, element(c->type, c->grad_x, r * c->D + d), grad_buffer);
        LOOP(n) {
            float u = x[j] * scale;
            grad.values[j] = more[j] + scale * (w[j] * g[j] - u * mean);
            total[j] += u * g[j];
        }
        store(c->type, grad, n);
    }
}

int norm_backward(const norm *c) {
    float *parts = calloc(CHUNKS * c->D, sizeof(float));
    if (!parts) return 1;
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int chunk = 0; chunk < CHUNKS; chunk++)
        for (int64_t r = chunk * c->N / CHUNKS; r < (chunk + 1) * c->N / CHUNKS; r++)
            norm_backward_row(c, r, parts + chunk * c->D);
    add_up(parts, c->D, c->grad_weight);
    free(parts);
    return 0;
}

/* ---- squared ReLU ---- */

typedef struct {
    int32_t type, threads;
    int64_t count;
    const char *x, *grad_y;
    char *out;
} relu2;

/* max(x, 0)^2, or with grad_y its gradient 2 max(x, 0) grad_y. */
void relu2_apply(const relu2 *c) {
    const int64_t tiles = (c->count + TILE - 1) / TILE;
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t tile = 0; tile < tiles; tile++) {
        float x_buffer[TILE], g_buffer[TILE], buffer[TILE];
        const int64_t i = tile * TILE;
        const int n = tile_size(c->count, i);
        const float *x = read(c->type, element(c->type, c->x, i), n, x_buffer);
        output out = open_row(c->type, element(c->type, c->out, i), buffer);
        if (c->grad_y) {
            const float *g = read(c->type, element(c->type, c->grad_y, i), n, g_buffer);
            LOOP(n) out.values[j] = x[j] <= 0 ? 0 : 2 * x[j] * g[j]; /* 0 for an infinite grad_y, NaN for a NaN */
        } else {
            LOOP(n) { float p = maximum(x[j], 0); out.values[j] = p * p; }
        }
        store(c->type, out, n);
    }
}

/* ---- causal convolution: y_t = bias + sum over k of weight_k x_{t - K + 1 + k} ---- */

typedef struct {
    int32_t type, threads;
    int64_t B, T, D, K;
    view x, past, y, grad_y, grad_x, grad_past; /* past is x at the times 1 - K ... -1; its gradient may be null */
    const float *weight, *bias;                 /* (K, D), (D) */
    float *grad_weights;                        /* (K + 1, D), the bias last */
} convolution;

INLINE const float *input(const convolution *c, int64_t b, int64_t t, int64_t d, int n, float *buffer) {
    const char *data = t < 0 ? at(c->past, c->type, b, t + c->K - 1, d) : at(c->x, c->type, b, t, d);
    return read(c->type, data, n, buffer);
}

void convolution_forward(const convolution *c) {
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < c->B * c->T; r++) {
        float x_buffer[TILE], y_buffer[TILE];
        const int64_t b = r / c->T, t = r % c->T;
        for (int64_t d = 0; d < c->D; d += TILE) {
            const int n = tile_size(c->D, d);
            output y = open_row(c->type, at(c->y, c->type, b, t, d), y_buffer);
            const float *bias = c->bias + d;
            LOOP(n) y.values[j] = bias[j];
            for (int64_t k = c->K - 1; k >= 0; k--) {
                const float *x = input(c, b, t - c->K + 1 + k, d, n, x_buffer), *w = c->weight + k * c->D + d;
                LOOP(n) y.values[j] += w[j] * x[j];
            }
            store(c->type, y, n);
        }
    }
}

/* The gradient of the input at time t, which went into y_{t + K - 1 - k} by weight k. */
static void convolution_backward_input(const convolution *c, int64_t b, int64_t t) {
    float g_buffer[TILE], grad_buffer[TILE];
    if (t < 0 && !c->grad_past.data) return;
    for (int64_t d = 0; d < c->D; d += TILE) {
        const int n = tile_size(c->D, d);
        char *data = t < 0 ? at(c->grad_past, c->type, b, t + c->K - 1, d) : at(c->grad_x, c->type, b, t, d);
        output grad = open_row(c->type, data, grad_buffer);
        LOOP(n) grad.values[j] = 0;
        for (int64_t k = 0; k < c->K; k++) {
            const int64_t s = t + c->K - 1 - k;
            if (s < 0 || s >= c->T) continue;
            const float *g = read(c->type, at(c->grad_y, c->type, b, s, d), n, g_buffer), *w = c->weight + k * c->D + d;
            LOOP(n) grad.values[j] += w[j] * g[j];
        }
        store(c->type, grad, n);
    }
}

/* Adds what y_t contributes to the gradients of weights and bias. */
static void convolution_backward_weights(const convolution *c, int64_t b, int64_t t, float *grad) {
    float x_buffer[TILE], g_buffer[TILE];
    for (int64_t d = 0; d < c->D; d += TILE) {
        const int n = tile_size(c->D, d);
        const float *g = read(c->type, at(c->grad_y, c->type, b, t, d), n, g_buffer);
        for (int64_t k = 0; k < c->K; k++) {
            const float *x = input(c, b, t - c->K + 1 + k, d, n, x_buffer);
            float *grad_weight = grad + k * c->D + d;
            LOOP(n) grad_weight[j] += g[j] * x[j];
        }
        float *grad_bias = grad + c->K * c->D + d;
        LOOP(n) grad_bias[j] += g[j];
    }
}

int convolution_backward(const convolution *c) {
    const int64_t size = (c->K + 1) * c->D, steps = c->T + c->K - 1, rows = c->B * steps;
    float *parts = calloc(CHUNKS * size, sizeof(float));
    if (!parts) return 1;
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int chunk = 0; chunk < CHUNKS; chunk++)
        for (int64_t r = chunk * rows / CHUNKS; r < (chunk + 1) * rows / CHUNKS; r++) {
            const int64_t b = r / steps, t = r % steps - c->K + 1;
            convolution_backward_input(c, b, t);
            if (t >= 0) convolution_backward_weights(c, b, t, parts + chunk * size);
        }
    add_up(parts, size, c->grad_weights);
    free(parts);
    return 0;
}

/* ---- cross-entropy: log(sum over v of exp(x_v - m)) - (x_target - m), for the largest x, m ---- */

typedef struct {
    int32_t type, threads;
    int64_t N, V, ignored;
    const char *x;
    const int64_t *targets;
    float *losses, *largest, *log_sums; /* (N) */
    char *grad_x;
    float grad; /* of the loss of one target */
} entropy;

static void entropy_row(const entropy *c, int64_t r) {
    float buffer[TILE], largest = -INFINITY, sum = 0;
    for (int64_t v = 0; v < c->V; v += TILE) {
        const int n = tile_size(c->V, v);
        const float *x = read(c->type, element(c->type, c->x, r * c->V + v), n, buffer);
#pragma omp simd reduction(max : largest)
        for (int j = 0; j < n; j++) largest = x[j] > largest ? x[j] : largest;
    }
    for (int64_t v = 0; v < c->V; v += TILE) {
        const int n = tile_size(c->V, v);
        const float *x = read(c->type, element(c->type, c->x, r * c->V + v), n, buffer);
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < n; j++) sum += exp_negative(x[j] - largest);
    }
    c->largest[r] = largest, c->log_sums[r] = logf(sum);
    if (c->targets[r] == c->ignored) return;
    c->losses[r] = c->log_sums[r] - (*read(c->type, element(c->type, c->x, r * c->V + c->targets[r]), 1, buffer) - largest);
}

/* Returns the number of targets that count, and writes their mean; or -1 if one is none of the V. */
int64_t entropy_forward(const entropy *c, float *mean) {
    int64_t count = 0;
    for (int64_t r = 0; r < c->N; r++) {
        if (c->targets[r] == c->ignored) continue;
        if (c->targets[r] < 0 || c->targets[r] >= c->V) return -1;
        count++;
    }
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < c->N; r++) entropy_row(c, r);
    double sum = 0;
    for (int64_t r = 0; r < c->N; r++) sum += c->targets[r] == c->ignored ? 0 : c->losses[r];
    *mean = sum / count;
    return count;
}

void entropy_backward(const entropy *c) {
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < c->N; r++) {
        float x_buffer[TILE], grad_buffer[TILE];
        const float scale = c->targets[r] == c->ignored ? 0 : c->grad, largest = c->largest[r], log_sum = c->log_sums[r];
        for (int64_t v = 0; v < c->V; v += TILE) {
            const int n = tile_size(c->V, v);
            const float *x = read(c->type, element(c->type, c->x, r * c->V + v), n, x_buffer);
            output grad = open_row(c->type, element(c->type, c->grad_x, r * c->V + v), grad_buffer);
            LOOP(n) grad.values[j] = scale * exp_negative(minimum(x[j] - largest - log_sum, 0));
            if (c->targets[r] >= v && c->targets[r] < v + n) grad.values[c->targets[r] - v] -= scale;
            store(c->type, grad, n);
        }
    }
}

/* ---- dropout: x / (1 - p) with probability 1 - p, else 0 ---- */

typedef struct {
    int32_t x_type, out_type, threads;
    uint32_t seed[2], least; /* elements are kept whose 32 random bits are not below `least` = 2^32 p */
    float scale;             /* 1 / (1 - p) */
    int64_t count;
    const char *x;
    const float *residual; /* is added; or null */
    char *out;
} dropout;

/* C. Wellons's hash "triple32" of an element's index, to which the seed is added before and within it: bits that depend on
 * nothing else need no memory until backward, and can be made by any thread.
 */
INLINE uint32_t random_bits(uint32_t index, uint32_t before, uint32_t within) {
    uint32_t x = index + before;
    x ^= x >> 17, x *= 0xed5ad4bbu;
    x ^= within;
    x ^= x >> 11, x *= 0xac4c1b51u;
    x ^= x >> 15, x *= 0x31848babu;
    return x ^ x >> 14;
}

void dropout_apply(const dropout *c) {
    const int64_t tiles = (c->count + TILE - 1) / TILE;
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t tile = 0; tile < tiles; tile++) {
        float x_buffer[TILE], buffer[TILE];
        const int64_t i = tile * TILE;
        const int n = tile_size(c->count, i);
        const uint32_t first = i, before = c->seed[0], within = c->seed[1] + (uint32_t)(i >> 32) * 0x9e3779b9u;
        const uint32_t least = c->least;
        const float scale = c->scale, *x = read(c->x_type, element(c->x_type, c->x, i), n, x_buffer);
        output out = open_row(c->out_type, element(c->out_type, c->out, i), buffer);
        LOOP(n) out.values[j] = random_bits(first + j, before, within) >= least ? x[j] * scale : 0;
        if (c->residual) {
            const float *more = c->residual + i;
            LOOP(n) out.values[j] += more[j];
        }
        store(c->out_type, out, n);
    }
}

/* ---- the norm of several tensors ---- */

typedef struct {
    const float *data;
    int64_t count;
} span;

static double squares_of(span x) {
    double total = 0;
    for (int64_t i = 0; i < x.count; i += TILE) {
        const float *tile = x.data + i;
        const int n = tile_size(x.count, i);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < n; j++) sum += tile[j] * tile[j];
        total += sum;
    }
    return total;
}

/* The norm of all elements together. Each tensor is summed by one thread, into `sums` (count). */
double total_norm(const span *tensors, int64_t count, double *sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < count; i++) sums[i] = squares_of(tensors[i]);
    double total = 0;
    for (int64_t i = 0; i < count; i++) total += sums[i];
    return sqrt(total);
}
