// libFuzzer's entry points, and the measure of the heap: the most that one run holds at once beyond what was held before it,
// held to the target's claim. The sanitizer calls the hooks on every allocation of every thread.
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int __sanitizer_install_malloc_and_free_hooks(
    void (*on_malloc)(const volatile void *, size_t), void (*on_free)(const volatile void *));
size_t __sanitizer_get_allocated_size(const volatile void *);

void edge_fuzz_select(const char *text);
ptrdiff_t edge_fuzz_heap_limit(size_t input_bytes);
void edge_fuzz_prepare(void);
void edge_fuzz_read(const uint8_t *bytes, size_t count);

/// Runs in which tables that live as long as the process are still being made.
enum { WARM_UP_RUNS = 200 };

static atomic_ptrdiff_t live, peak;
static ptrdiff_t highest, highest_input;
static size_t runs;

static void on_malloc(const volatile void *memory, size_t bytes) {
    (void)memory;
    const ptrdiff_t now = atomic_fetch_add(&live, (ptrdiff_t)bytes) + (ptrdiff_t)bytes;
    ptrdiff_t seen = atomic_load(&peak);
    while (now > seen && !atomic_compare_exchange_weak(&peak, &seen, now)) {
    }
}

static void on_free(const volatile void *memory) {
    if (memory != NULL) atomic_fetch_sub(&live, (ptrdiff_t)__sanitizer_get_allocated_size(memory));
}

static void report(void) {
    fprintf(stderr, "HEAP: at most %td bytes in a run, for an input of %td\n", highest, highest_input);
}

int LLVMFuzzerInitialize(int *argument_count, char ***arguments) {
    (void)argument_count, (void)arguments;
    const char *target = getenv("EDGETUNE_FUZZ");
    edge_fuzz_select(target != NULL ? target : "list");
    if (!__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free)) abort();
    atexit(report);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count) {
    edge_fuzz_prepare();
    const ptrdiff_t before = atomic_load(&live);
    atomic_store(&peak, before);
    edge_fuzz_read(bytes, count);
    const ptrdiff_t held = atomic_load(&peak) - before, limit = edge_fuzz_heap_limit(count);
    if (++runs <= WARM_UP_RUNS) return 0;
    if (held > highest) highest = held, highest_input = (ptrdiff_t)count;
    if (held > limit) {
        fprintf(stderr, "BROKEN: the heap held %td bytes, the claim for an input of %zu is %td\n", held, count, limit);
        abort();
    }
    return 0;
}
