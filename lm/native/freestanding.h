/* The part of the C library that kernels use, for WebAssembly, which has none. Copies are instructions there. The rest
 * is declared and not defined: what calls it, as `decode` of packed.c does, cannot be exported to WebAssembly.
 */
#include <stddef.h>

#define memcpy __builtin_memcpy
#define memmove __builtin_memmove
void *malloc(size_t size);
void free(void *memory);
double exp(double x);
typedef int pthread_t;
int pthread_create(pthread_t *thread, const void *attributes, void *(*start)(void *), void *argument);
int pthread_join(pthread_t thread, void **result);
