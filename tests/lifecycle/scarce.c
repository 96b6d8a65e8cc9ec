/* Preloaded by scarcity.py: lets the n-th allocation or new thread from now on fail, once or for good.
 *
 * What counts as an allocation: malloc, calloc, realloc, posix_memalign and C++'s operator new, either
 * those that the extension and the C++ library ask for, or all of the process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern void * __libc_malloc(size_t);
extern void * __libc_calloc(size_t, size_t);
extern void * __libc_realloc(void *, size_t);
extern void * __libc_memalign(size_t, size_t);

enum { MOST_RANGES = 16 };

static struct { uintptr_t begin, end; } ranges[MOST_RANGES];
static int         n_ranges;
static int         everywhere;
static int         for_good;
static atomic_long allocations_left = -1; /* -1: none fails */
static atomic_long allocations;
static atomic_long threads_left = -1;

static int note_range(struct dl_phdr_info * info, size_t size, void * data) {
    (void) size;
    (void) data;
    if (!strstr(info->dlpi_name, "/_core.") && !strstr(info->dlpi_name, "/libstdc++.")) {
        return 0;
    }
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) * part = &info->dlpi_phdr[i];
        if (part->p_type == PT_LOAD && (part->p_flags & PF_X) && n_ranges < MOST_RANGES) {
            ranges[n_ranges].begin = info->dlpi_addr + part->p_vaddr;
            ranges[n_ranges].end   = ranges[n_ranges].begin + part->p_memsz;
            n_ranges++;
        }
    }
    return 0;
}

/* n < 0: none fails. */
void fail_allocations(long n, int all, int always) {
    n_ranges = 0;
    dl_iterate_phdr(note_range, NULL);
    everywhere = all;
    for_good   = always;
    atomic_store(&allocations, 0);
    atomic_store(&allocations_left, n);
}

long count_allocations(void) {
    return atomic_load(&allocations);
}

void fail_threads(long n) {
    atomic_store(&threads_left, n);
}

static int fails(void * caller) {
    if (!everywhere) {
        int ours = 0;
        for (int i = 0; i < n_ranges; i++) {
            ours |= (uintptr_t) caller >= ranges[i].begin && (uintptr_t) caller < ranges[i].end;
        }
        if (!ours) {
            return 0;
        }
    }
    atomic_fetch_add(&allocations, 1);
    if (atomic_load(&allocations_left) < 0) {
        return 0;
    }
    long left = atomic_fetch_sub(&allocations_left, 1);
    if (left > 0) {
        return 0;
    }
    if (left == 0 && for_good) {
        atomic_store(&allocations_left, 0);
    }
    return left == 0;
}

void * malloc(size_t size) {
    if (fails(__builtin_return_address(0))) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_malloc(size);
}

void * calloc(size_t n, size_t size) {
    if (fails(__builtin_return_address(0))) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_calloc(n, size);
}

void * realloc(void * old, size_t size) {
    if (size > 0 && fails(__builtin_return_address(0))) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_realloc(old, size);
}

int posix_memalign(void ** out, size_t alignment, size_t size) {
    if (fails(__builtin_return_address(0))) {
        return ENOMEM;
    }
    *out = __libc_memalign(alignment, size);
    return *out ? 0 : ENOMEM;
}

/* operator new(unsigned long) of the C++ library asks malloc() from there, which counts above; that
 * is the same allocation, and one count of it is enough. */

int pthread_create(pthread_t * thread, const pthread_attr_t * attributes, void * (*start)(void *),
                   void * data) {
    static int (*create)(pthread_t *, const pthread_attr_t *, void * (*)(void *), void *);
    if (atomic_load(&threads_left) >= 0 && atomic_fetch_sub(&threads_left, 1) <= 0) {
        atomic_store(&threads_left, 0);
        return EAGAIN;
    }
    if (!create) {
        *(void **) &create = dlsym(RTLD_NEXT, "pthread_create");
    }
    return create(thread, attributes, start, data);
}
