/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bounded memory: the only way from an address that somebody else wrote to a pointer is rpx_mem_at().
 * Regions are private, sorted by nothing, few: a queue's memory is typically one to four intervals.
 */
#ifndef RPX_MEM_H
#define RPX_MEM_H

#include "endian.h"

enum rpx_perm {
	RPX_PERM_READ = 1,
	RPX_PERM_WRITE = 2,
};

/* How bytes of a region may be touched. */
enum rpx_kind {
	RPX_KIND_CACHED = 0,   /* normal memory, coherent with the peer: memcpy, SMP barriers */
	RPX_KIND_UNCACHED = 1, /* normal non-cached or write-combining: memcpy, device barriers */
	RPX_KIND_DEVICE = 2,   /* device memory: naturally aligned accesses only, device barriers */
};

static inline enum rpx_order rpx_kind_order(enum rpx_kind kind)
{
	return kind == RPX_KIND_CACHED ? RPX_ORDER_SMP : RPX_ORDER_DEVICE;
}

/* An interval [addr, addr + len) of the address space that descriptors use, which it does not wrap, and where it lies. */
struct rpx_region {
	uint8_t *base;
	uint64_t addr;
	uint64_t len;
	uint32_t perm; /* enum rpx_perm bits */
};

struct rpx_mem {
	const struct rpx_region *regions;
	uint32_t count;
};

/*
 * A pointer to [addr, addr + len), or NULL where no single region with `perm` holds all of it. No sum can overflow; an
 * address below the region makes an offset beyond its end.
 */
RPX_HOT uint8_t *rpx_mem_at(const struct rpx_mem *mem, uint64_t addr, uint64_t len, uint32_t perm)
{
	const struct rpx_region *r = mem->regions;
	for (uint32_t left = mem->count; left > 0; left--, r++) {
		uint64_t offset = addr - r->addr;
		if (offset <= r->len && len <= r->len - offset && (r->perm & perm) == perm)
			return r->base + offset;
	}
	return NULL;
}

/*
 * Where this environment has no libc (freestanding), copies are loops: the empty asm keeps the compiler from turning
 * them back into calls of memcpy and memset.
 */
#ifndef RPX_MEMCPY
#if __STDC_HOSTED__
#define RPX_MEMCPY(to, from, n) rpx_copy_hosted((to), (from), (n))
#else
#define RPX_MEMCPY(to, from, n) rpx_copy_loop((to), (from), (n))
#endif
#endif

#if __STDC_HOSTED__
/*
 * Short messages: 16 bytes at a time. Payloads start 16 bytes into a cache line, where the wide moves of a libc straddle
 * lines; 16-byte ones do not. The empty asm keeps the loop from becoming a call of memcpy again.
 */
RPX_HOT void rpx_copy_hosted(void *to, const void *from, size_t n)
{
	uint8_t *t = (uint8_t *)to;
	const uint8_t *f = (const uint8_t *)from;
	if (n < 32 || n > 128) {
		__builtin_memcpy(t, f, n);
		return;
	}
	size_t i = 0;
	do {
		__builtin_memcpy(t + i, f + i, 16);
		__builtin_memcpy(t + i + 16, f + i + 16, 16);
		__asm__ volatile("" ::: "memory");
		i += 32;
	} while (i + 32 <= n);
	if (i != n) { /* the last 32 bytes, some of them for the second time */
		__builtin_memcpy(t + n - 32, f + n - 32, 16);
		__builtin_memcpy(t + n - 16, f + n - 16, 16);
	}
}
#endif

/* Assign a struct; where there is no libc, the compiler must not make that a call of memcpy. */
#if __STDC_HOSTED__
#define RPX_ASSIGN(to, from) ((void)(*(to) = *(from)))
#else
#define RPX_ASSIGN(to, from) rpx_copy_loop((to), (from), sizeof *(to))
#endif

static inline void rpx_copy_loop(void *to, const void *from, size_t n)
{
	uint8_t *t = (uint8_t *)to;
	const uint8_t *f = (const uint8_t *)from;
	if ((((uintptr_t)t | (uintptr_t)f) & 3u) == 0) {
		for (; n >= 4; n -= 4, t += 4, f += 4) {
			*(uint32_t *)(void *)t = *(const uint32_t *)(const void *)f;
			__asm__ volatile("" ::: "memory");
		}
	}
	for (; n > 0; n--) {
		*t++ = *f++;
		__asm__ volatile("" ::: "memory");
	}
}

/* Device memory: bytes up to alignment, then words, then bytes; volatile, so that widths stay as written. */
static inline void rpx_copy_from_device(void *to, const void *from, size_t n)
{
	uint8_t *t = (uint8_t *)to;
	const volatile uint8_t *f = (const volatile uint8_t *)from;
	for (; n > 0 && ((uintptr_t)f & 3u) != 0; n--)
		*t++ = *f++;
	for (; n >= 4; n -= 4, f += 4) {
		uint32_t w = *(const volatile uint32_t *)(const volatile void *)f;
		for (unsigned i = 0; i < 4; i++)
			*t++ = (uint8_t)(w >> (RPX_BIG_ENDIAN ? 24u - 8u * i : 8u * i));
	}
	for (; n > 0; n--)
		*t++ = *f++;
}

static inline void rpx_copy_to_device(void *to, const void *from, size_t n)
{
	volatile uint8_t *t = (volatile uint8_t *)to;
	const uint8_t *f = (const uint8_t *)from;
	for (; n > 0 && ((uintptr_t)t & 3u) != 0; n--)
		*t++ = *f++;
	for (; n >= 4; n -= 4, t += 4) {
		uint32_t w = 0;
		for (unsigned i = 0; i < 4; i++)
			w |= (uint32_t)*f++ << (RPX_BIG_ENDIAN ? 24u - 8u * i : 8u * i);
		*(volatile uint32_t *)(volatile void *)t = w;
	}
	for (; n > 0; n--)
		*t++ = *f++;
}

static inline void rpx_copy_from(void *to, const void *shared, size_t n, enum rpx_kind kind)
{
	if (rpx_likely(kind != RPX_KIND_DEVICE))
		RPX_MEMCPY(to, shared, n);
	else
		rpx_copy_from_device(to, shared, n);
}

static inline void rpx_copy_to(void *shared, const void *from, size_t n, enum rpx_kind kind)
{
	if (rpx_likely(kind != RPX_KIND_DEVICE))
		RPX_MEMCPY(shared, from, n);
	else
		rpx_copy_to_device(shared, from, n);
}

/* Zero shared memory of any kind (rings, before use). */
static inline void rpx_zero(void *shared, size_t n)
{
	volatile uint8_t *t = (volatile uint8_t *)shared;
	for (; n > 0 && ((uintptr_t)t & 3u) != 0; n--)
		*t++ = 0;
	for (; n >= 4; n -= 4, t += 4)
		*(volatile uint32_t *)(volatile void *)t = 0;
	for (; n > 0; n--)
		*t++ = 0;
}

#endif
