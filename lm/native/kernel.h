/* Shared by the CPU kernels: element types, views, the exponential.
 *
 * Loops are plain C that the compiler vectorises: they contain no branches and call no libm.
 */
#include <float.h>
#include <stdint.h>
#ifdef __wasm__
#include "freestanding.h"
#else
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#endif

#define LOOP(n) _Pragma("omp simd") for (int j = 0; j < (n); j++)
#define INLINE static inline __attribute__((always_inline))

/* Floats in a vector of this processor, and how many vectors its registers hold. */
#if defined(__AVX512F__)
enum { LANES = 16, REGISTERS = 32 };
#elif defined(__AVX__)
enum { LANES = 8, REGISTERS = 16 };
#elif defined(__aarch64__)
enum { LANES = 4, REGISTERS = 32 };
#else
enum { LANES = 4, REGISTERS = 16 };
#endif
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float aliased __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Not by memcpy, which compilers for AVX2 make of two halves that pass through the stack. */
INLINE vector load_vector(const void *from) { return (vector)*(const aliased *)from; }
INLINE void save_vector(void *to, vector x) { *(aliased *)to = (aliased)x; }

/* A (B, T, D) tensor with contiguous channels; strides in elements. */
typedef struct {
    char *data;
    int64_t batch, time;
} view;

/* ---- element types ---- */

enum { FLOAT32, BFLOAT16, FLOAT16 };

INLINE float as_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
INLINE uint32_t as_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

INLINE float from_bfloat16(uint16_t x) { return as_float((uint32_t)x << 16); }

INLINE uint16_t to_bfloat16(float x) {
    uint32_t bits = as_bits(x), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x == x ? rounded : 0x7fc0;
}

INLINE float from_float16(uint16_t x) {
    uint32_t bits = (uint32_t)(x & 0x7fff) << 13;
    float magnitude = bits < 0x7c00u << 13 ? as_float(bits) * 0x1p112f : as_float(bits | 0x7f800000);
    return as_float(as_bits(magnitude) | (uint32_t)(x & 0x8000) << 16);
}

INLINE uint16_t to_float16(float x) {
    uint32_t bits = as_bits(x) & 0x7fffffff;
    float magnitude = as_float(bits);
    uint32_t normal = (bits - (112u << 23) + 0xfff + ((bits >> 13) & 1)) >> 13;
    uint32_t subnormal = as_bits(magnitude + 0.5f) - as_bits(0.5f); /* the addition rounds at 2^-24 */
    uint32_t finite = magnitude < 0x1p-14f ? subnormal : normal;
    uint32_t result = magnitude < 65520.0f ? finite : magnitude == magnitude ? 0x7c00 : 0x7e00;
    return result | (as_bits(x) >> 16 & 0x8000);
}

INLINE int size_of(int type) { return type == FLOAT32 ? 4 : 2; }

/* Row t of batch row b, from channel d on. */
INLINE char *at(view v, int type, int64_t b, int64_t t, int64_t d) {
    return v.data + (b * v.batch + t * v.time + d) * size_of(type);
}

/* n elements as floats: in place if they are floats, else in the buffer. */
INLINE const float *read(int type, const void *data, int n, float *buffer) {
    const uint16_t *half = data;
    if (type == FLOAT32) return data;
    if (type == BFLOAT16) { LOOP(n) buffer[j] = from_bfloat16(half[j]); }
    else { LOOP(n) buffer[j] = from_float16(half[j]); }
    return buffer;
}

/* A row that is to be written. Floats are computed in place, other types in `values` and converted by `store`. */
typedef struct {
    float *values;
    uint16_t *half;
} output;

INLINE output open_row(int type, void *data, float *buffer) {
    return (output){type == FLOAT32 ? data : buffer, data};
}

INLINE void store(int type, output out, int n) {
    if (type == BFLOAT16) { LOOP(n) out.half[j] = to_bfloat16(out.values[j]); }
    if (type == FLOAT16) { LOOP(n) out.half[j] = to_float16(out.values[j]); }
}

/* ---- arithmetic ---- */

/* exp(x) for x <= 0 to about one unit in the last place; exp(-80) below that, so that no product goes subnormal. */
INLINE float exp_negative(float x) {
    const float round = 0x1.8p23f; /* adding it leaves the nearest integer in the low bits */
    x = x < -80.0f ? -80.0f : x;
    float shifted = x * 0x1.715476p+0f + round, n = shifted - round;
    float r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f; /* ln 2 in two parts */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * as_float((as_bits(shifted) << 23) + 0x3f800000);
}

INLINE float minimum(float x, float y) { return y < x ? y : x; }
INLINE float maximum(float x, float y) { return y > x ? y : x; }
INLINE float absolute(float x) { return as_float(as_bits(x) & 0x7fffffff); }

INLINE float sigmoid(float x) {
    float e = exp_negative(-absolute(x)), r = 1.0f / (1.0f + e);
    return x >= 0 ? r : e * r;
}

INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }
